"""The scripts that Redis runs: each does what has to be done at once, in one round trip.

Their only key tells a cluster where to run them; all others have the same
tenant, and so are there too. Arguments come as one MessagePack map, all texts in it
as text: the reader that Redis brings knows no binary.
"""

from __future__ import annotations

_TAKE = """
-- The arithmetic of conversation/limits.py. A bucket is the moment at which it is full again, as "seconds nanoseconds":
-- a number here holds whole nanoseconds of 104 days only, which is enough for the distance from now.
local function take(claims, clock, write)
  local s, n
  if clock then
    s, n = clock[1], clock[2]
  else
    local time = redis.call('TIME')
    s, n = tonumber(time[1]), tonumber(time[2]) * 1000
  end
  local aheads, longest, short = {}, 0, 0
  for i, claim in ipairs(claims) do
    local ahead, kept = 0, redis.call('GET', claim[1])
    if kept then
      local ks, kn = string.match(kept, '^(%d+) (%d+)$')
      ahead = math.max((tonumber(ks) - s) * 1e9 + (tonumber(kn) - n), 0)
    end
    aheads[i] = ahead
    if ahead - claim[3] > longest then
      longest, short = ahead - claim[3], i
    end
  end
  if write and short == 0 then
    for i, claim in ipairs(claims) do
      aheads[i] = aheads[i] + claim[2]
      local full = n + aheads[i]
      redis.call('SET', claim[1], string.format('%d %d', s + math.floor(full / 1e9), full % 1e9),
        'PX', math.ceil(aheads[i] / 1e6) + 1)
    end
  end
  return short, longest, aheads
end
"""

TAKE = (
    _TAKE
    + """
local a = cmsgpack.unpack(ARGV[1])
return {take(a.claims, a.clock, a.write)}
"""
)

_LEASE = """
-- Returns the lease of who asks, or else whose it is.
local function lease(a, key)
  local value = redis.call('GET', a.flight .. key)
  if not value then
    value = a.server .. ':' .. redis.call('INCR', KEYS[1])
    redis.call('SET', a.flight .. key, value, 'PX', a.lease_ms)
    return value, ''
  end
  local server = string.match(value, '^[^:]*')
  if server ~= a.server then
    -- From now on whatever comes of it goes into the stream, which its writer is asked to fill from the start.
    if redis.call('EXISTS', a.stream .. value) == 0 then
      redis.call('XADD', a.stream .. value, '*', 'o', '')
      redis.call('RPUSH', a.inbox .. server, key .. ' ' .. value)
      redis.call('PEXPIRE', a.inbox .. server, a.stream_ms)
    end
    redis.call('PEXPIRE', a.stream .. value, a.stream_ms)
    redis.call('SET', a.wanted .. value, '1', 'PX', a.wanted_ms)
  end
  return '', value
end
"""

OPEN = (
    _TAKE
    + _LEASE
    + """
local a = cmsgpack.unpack(ARGV[1])
local short, wait, aheads = take(a.claims, a.clock, true)
if short > 0 then return {'short', short, wait, aheads} end
local digest, said = '', false
if a.session then
  local held = redis.call('HMGET', a.session, 'user', 'digest')
  if not held[1] then return {'unknown', 0, 0, aheads} end
  if held[1] ~= a.user then return {'foreign', 0, 0, aheads} end
  digest = held[2]
  redis.call('PEXPIRE', a.session, a.ttl_ms)
  redis.call('PEXPIRE', a.said, a.ttl_ms)
  if digest ~= a.known then said = redis.call('LRANGE', a.said, 0, -1) end
end
local key = a.base
if a.remembers then key = key .. digest end
if not a.lookup then return {'open', 0, 0, aheads, digest, said, key, false, '', ''} end
local answer = redis.call('GET', a.answer .. key)
if answer then return {'open', 0, 0, aheads, digest, said, key, answer, '', ''} end
return {'open', 0, 0, aheads, digest, said, key, false, lease(a, key)}
"""
)
"""Returns its status, the claim that is short and by how many nanoseconds, how far each bucket is from being full, the
session's digest, what was said in it, the answer's key, the answer, the lease, and the value of another's lease."""

TAKE_OVER = (
    _LEASE
    + """
local a = cmsgpack.unpack(ARGV[1])
-- Whoever took over before may have written it by now.
local answer = redis.call('GET', a.answer)
if answer then return {'', '', answer} end
return {lease(a, a.key)}
"""
)

CLOSE = """
local a = cmsgpack.unpack(ARGV[1])
local before, after = false, false
if a.answer then redis.call('SET', a.answer, a.text, 'PX', a.answer_ms) end
if a.lease then
  if redis.call('GET', a.flight) == a.lease then redis.call('DEL', a.flight) end
  if redis.call('EXISTS', a.stream) == 1 then
    redis.call('XADD', a.stream, '*', a.ending, a.told)
    redis.call('PEXPIRE', a.stream, a.stream_ms)
  end
end
if a.session then
  before = redis.call('HGET', a.session, 'digest')
  local news = {a.exchange}
  if not before then
    -- It has been dropped meanwhile: what was said before is not here, so it has to be read from the history.
    if not a.whole then return {false, false} end
    news = a.whole
  end
  after = before or ''
  for _, exchange in ipairs(news) do
    redis.call('RPUSH', a.said, exchange)
    after = redis.sha1hex(after .. exchange)
  end
  if a.turns > 0 then redis.call('LTRIM', a.said, -a.turns, -1) else redis.call('DEL', a.said) end
  redis.call('HSET', a.session, 'user', a.user, 'digest', after)
  redis.call('PEXPIRE', a.session, a.ttl_ms)
  redis.call('PEXPIRE', a.said, a.ttl_ms)
  if a.index then
    redis.call('SADD', a.index, a.id)
    redis.call('PEXPIRE', a.index, a.ttl_ms)
  end
end
return {before, after}
"""
"""Returns the digest of what had been said in the session (none if it was not there), and of what has been said now."""

RENEW = """
local a = cmsgpack.unpack(ARGV[1])
for _, held in ipairs(a.leases) do
  if redis.call('GET', held[1]) == held[2] then redis.call('PEXPIRE', held[1], a.lease_ms) end
end
return 1
"""

PUBLISH = """
local a = cmsgpack.unpack(ARGV[1])
redis.call('XADD', a.stream, '*', a.kind, a.text)
redis.call('PEXPIRE', a.stream, a.stream_ms)
return redis.call('EXISTS', a.wanted)
"""
"""Returns whether anybody still reads it."""

FORGET = """
local a = cmsgpack.unpack(ARGV[1])
for _, id in ipairs(a.sessions) do redis.call('DEL', a.session .. id, a.said .. id) end
for _, index in ipairs(a.indexes) do
  for _, id in ipairs(redis.call('SMEMBERS', index)) do redis.call('DEL', a.session .. id, a.said .. id) end
  redis.call('DEL', index)
end
return 1
"""
