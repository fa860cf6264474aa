-- One commit of one task, all or nothing, and only once.
--
-- KEYS  1 checkpoint  2 arrays  3 windows  4 out  5 dead  6 holder  7 spec  8 manifest
--       9 metrics  10 blobs  11 log  12 new blob  13 blob to delete
-- ARGV  1 holder token  2 serial before  3 redis run_id  4 MessagePack of the commit
--
-- Returns 1 when done; 0 when refused: the token, the serial or the server is another one.
-- A repeat of a commit that was done finds another serial and is refused.

if redis.call('GET', KEYS[6]) ~= ARGV[1] then return 0 end
if (redis.call('HGET', KEYS[1], 'serial') or '0') ~= ARGV[2] then return 0 end
if not string.find(redis.call('INFO', 'server'), ARGV[3], 1, true) then return 0 end

local commit = cmsgpack.unpack(ARGV[4])
local serial = string.format('%d', tonumber(ARGV[2]) + 1)

redis.call('HSET', KEYS[1], 'serial', serial, 'small', commit.small)
for name, bytes in pairs(commit.vectors) do redis.call('HSET', KEYS[2], name, bytes) end
for _, name in ipairs(commit.gone) do redis.call('HDEL', KEYS[2], name) end
for name, bytes in pairs(commit.windows) do redis.call('HSET', KEYS[3], name, bytes) end

if commit.spec then redis.call('SET', KEYS[7], commit.spec) end
if commit.metrics then redis.call('SET', KEYS[9], commit.metrics) end
if commit.blob then
  redis.call('SET', KEYS[12], commit.blob)
  redis.call('HSET', KEYS[10], commit.blob_name, commit.chunk_bytes)
  redis.call('SET', KEYS[8], commit.manifest)
end
if commit.sweep then
  redis.call('DEL', KEYS[13])
  redis.call('HDEL', KEYS[10], commit.sweep)
end

for i, fields in ipairs(commit.out) do
  redis.call('XADD', KEYS[4], serial .. '-' .. i, unpack(fields))
end

for _, letter in ipairs(commit.dead) do
  redis.call('XADD', KEYS[5], letter[1], unpack(letter[2]))
end
if #commit.dead > 0 then redis.call('XTRIM', KEYS[5], 'MAXLEN', commit.dead_keep) end

if commit.log_keep then redis.call('XTRIM', KEYS[11], 'MINID', '~', commit.log_keep) end
return 1
