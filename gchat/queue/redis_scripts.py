"""Calls of the queue as Lua: each runs in Redis as one step, by the server's own clock.

Keys, all with the prefix KEYS[1]: `meta` (settings, counters), `item:ID` (a hash), `ready` (ids by
rank), `leased` and `delayed` (ids by the moment they end), `done` (a list of "MOMENT ID"), `dead`
(ids by their number), `failures` (count by reason). Moments are seconds since the queue was made,
so that a double holds them to the microsecond.
"""

PRELUDE = """
local p = KEYS[1]
local meta, ready, leased, delayed = p..'meta', p..'ready', p..'leased', p..'delayed'
local done, dead, failures = p..'done', p..'dead', p..'failures'
local function item(id) return p..'item:'..id end
local function number(name) return tonumber(redis.call('HGET', meta, name)) end
local function clock()
  local t = redis.call('TIME')
  return (tonumber(t[1]) - number('made')) + tonumber(t[2]) / 1e6
end
local function text(x) return string.format('%.17g', x) end
local function held(id, receipt)
  local facts = redis.call('HMGET', item(id), 'state', 'receipt')
  return facts[1] == 'leased' and facts[2] == receipt
end
local function enqueue(id)
  redis.call('ZADD', ready, redis.call('HGET', item(id), 'rank'), id)
  redis.call('HSET', item(id), 'state', 'waiting', 'receipt', '', 'worker', '')
end
local function bury(id, reason)
  redis.call('HSET', item(id), 'state', 'dead', 'receipt', '', 'worker', '', 'reason', reason)
  redis.call('ZADD', dead, redis.call('HGET', item(id), 'seq'), id)
end
"""

ADD = """
local new, moment, age = 0, clock(), number('age_s')
local last = number('last')
for i = 1, #ARGV, 3 do
  local id = ARGV[i]
  if redis.call('EXISTS', item(id)) == 0 then
    -- Never the same moment twice: items of one priority leave in the order they came.
    moment = math.max(moment, last + 1e-6)
    last = moment
    local seq = redis.call('HINCRBY', meta, 'seq', 1)
    redis.call('HSET', item(id), 'payload', ARGV[i + 1], 'priority', ARGV[i + 2],
      'added', text(moment), 'rank', text(moment - tonumber(ARGV[i + 2]) * age),
      'seq', seq, 'attempts', 0)
    enqueue(id)
    new = new + 1
  end
end
redis.call('HSET', meta, 'last', text(last))
return new
"""

LEASE = """
local n, seconds, worker, token = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local now, most = clock(), number('attempts')
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leased, '-inf', text(now), 'LIMIT', 0, 1000)) do
  redis.call('ZREM', leased, id)
  local facts = redis.call('HMGET', item(id), 'attempts', 'worker')
  if tonumber(facts[1]) >= most then
    bury(id, 'lease ran out: its worker '..facts[2]..' died or was silent')
    redis.call('HINCRBY', failures, 'lease ran out', 1)
  else
    enqueue(id)
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', text(now), 'LIMIT', 0, 1000)) do
  redis.call('ZREM', delayed, id)
  enqueue(id)
end
local lent = {}
local popped = redis.call('ZPOPMIN', ready, n)
for i = 1, #popped, 2 do
  local id = popped[i]
  local attempt = redis.call('HINCRBY', item(id), 'attempts', 1)
  local receipt = token..'-'..i
  redis.call('ZADD', leased, text(now + seconds), id)
  redis.call('HSET', item(id), 'state', 'leased', 'receipt', receipt, 'worker', worker)
  local facts = redis.call('HMGET', item(id), 'payload', 'priority')
  lent[#lent + 1] = {id, facts[1], facts[2], receipt, attempt, text(now + seconds + number('made'))}
end
return lent
"""

EXTEND = """
if not held(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZADD', leased, text(clock() + tonumber(ARGV[3])), ARGV[1])
return 1
"""

COMPLETE = """
local id, receipt = ARGV[1], ARGV[2]
if not held(id, receipt) then
  local facts = redis.call('HMGET', item(id), 'state', 'receipt')
  return (facts[1] == 'done' and facts[2] == receipt) and 1 or 0
end
redis.call('ZREM', leased, id)
redis.call('HSET', item(id), 'state', 'done', 'worker', '', 'result', ARGV[3])
redis.call('HINCRBYFLOAT', meta, 'cost', ARGV[4])
redis.call('RPUSH', done, text(clock())..' '..id)
return 1
"""

FAIL = """
local id, reason, kind = ARGV[1], ARGV[3], ARGV[4]
local wait, final = tonumber(ARGV[5]), ARGV[7] == '1'
if not held(id, ARGV[2]) then return 0 end
redis.call('ZREM', leased, id)
local attempts = redis.call('HINCRBY', item(id), 'attempts', ARGV[6])
redis.call('HINCRBY', failures, kind, 1)
redis.call('HINCRBYFLOAT', meta, 'cost', ARGV[8])
if final or attempts >= number('attempts') then
  bury(id, reason)
elseif wait > 0 then
  redis.call('HSET', item(id), 'state', 'delayed', 'receipt', '', 'worker', '', 'reason', reason)
  redis.call('ZADD', delayed, text(clock() + wait), id)
else
  redis.call('HSET', item(id), 'reason', reason)
  enqueue(id)
end
return 1
"""

RELEASE = """
if not held(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZREM', leased, ARGV[1])
redis.call('HINCRBY', item(ARGV[1]), 'attempts', -1)
enqueue(ARGV[1])
return 1
"""

# ARGV: priority, ids that match. Items that ended meanwhile stay as they are.
PRIORITY = """
local changed, value, age = 0, tonumber(ARGV[1]), number('age_s')
for i = 2, #ARGV do
  local id = ARGV[i]
  local facts = redis.call('HMGET', item(id), 'state', 'added')
  if facts[1] == 'waiting' or facts[1] == 'leased' or facts[1] == 'delayed' then
    local rank = text(tonumber(facts[2]) - value * age)
    redis.call('HSET', item(id), 'priority', ARGV[1], 'rank', rank)
    if facts[1] == 'waiting' then redis.call('ZADD', ready, rank, id) end
    changed = changed + 1
  end
end
return changed
"""

REVIVE = """
local back = 0
for i = 1, #ARGV do
  local id = ARGV[i]
  if redis.call('HGET', item(id), 'state') == 'dead' then
    redis.call('ZREM', dead, id)
    redis.call('HSET', item(id), 'attempts', 0, 'reason', '')
    enqueue(id)
    back = back + 1
  end
end
return back
"""

FACTS = """
local now = clock()
local over = redis.call('ZCOUNT', leased, '-inf', text(now))
local oldest = ''
local first = redis.call('ZRANGE', ready, 0, 0)
if first[1] then oldest = redis.call('HGET', item(first[1]), 'added') end
local workers = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leased, '('..text(now), '+inf')) do
  workers[#workers + 1] = redis.call('HGET', item(id), 'worker')
end
return {
  redis.call('ZCARD', ready) + redis.call('ZCARD', delayed) + over,
  redis.call('ZCARD', leased) - over, redis.call('LLEN', done), redis.call('ZCARD', dead),
  text(now), redis.call('HGET', meta, 'cost'), oldest, workers,
  redis.call('HGETALL', failures)}
"""

# Makes the queue, or changes settings of the one that is there; returns its version.
OPEN = """
local version = redis.call('HGET', meta, 'version')
if not version then
  if ARGV[1] == '0' then return '' end
  version = ARGV[2]
  redis.call('HSET', meta, 'version', version, 'made', redis.call('TIME')[1], 'seq', 0, 'cost', 0,
    'last', 0, 'attempts', ARGV[3], 'age_s', ARGV[4])
end
if version == ARGV[2] then
  for i = 5, #ARGV, 2 do redis.call('HSET', meta, ARGV[i], ARGV[i + 1]) end
end
return version
"""
