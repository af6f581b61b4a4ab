-- One row a message, with its answer. Times are microseconds since 1970, UTC.
CREATE TABLE messages (
    id                TEXT    NOT NULL PRIMARY KEY,
    user_id           TEXT    NOT NULL,
    session_id        TEXT    NOT NULL,
    request_id        TEXT    NOT NULL,
    message           TEXT    NOT NULL,
    answer            TEXT    NOT NULL,
    status            TEXT    NOT NULL,
    finish_reason     TEXT,
    error_reason      TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,
    total_tokens      INTEGER,
    cost_usd          REAL,
    estimated         INTEGER,
    cached            INTEGER NOT NULL,
    degraded          TEXT    NOT NULL,
    created_at        INTEGER NOT NULL,
    completed_at      INTEGER
) WITHOUT ROWID, STRICT;

-- The two ways in: pages of a user and of a session, newest first.
CREATE INDEX messages_by_user ON messages (user_id, created_at DESC, id DESC) WHERE user_id <> '';
CREATE INDEX messages_by_session ON messages (session_id, created_at DESC, id DESC);

-- Found at start: what a server that died left unfinished.
CREATE INDEX messages_pending ON messages (id) WHERE status = 'pending';
