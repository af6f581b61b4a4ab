-- Idempotency: a request that its caller named is found by that name, and known
-- from another of the same name by its digest. The name is let go when the
-- request fails, so that it can be tried again. Passages are kept so that a kept
-- answer can be given again as it was.
ALTER TABLE messages ADD COLUMN request_key TEXT;
ALTER TABLE messages ADD COLUMN request_digest TEXT NOT NULL DEFAULT '';
ALTER TABLE messages ADD COLUMN passages TEXT NOT NULL DEFAULT '[]';

CREATE UNIQUE INDEX messages_by_request ON messages (request_key) WHERE request_key IS NOT NULL;
