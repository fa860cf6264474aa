#!lua flags=allow-oom
-- One commit of one task, all or nothing, and only once.
--
-- KEYS  1 checkpoint  2 arrays  3 windows  4 devices  5 versions  6 standing  7 out  8 dead
--       9 holder  10 spec  11 manifest  12 metrics  13 blobs  14 log  15 origin
--       then pairs of a blob's old name and its new one, the blobs to keep, the blobs to delete
-- ARGV  1 holder token  2 serial before  3 redis run_id  4 MessagePack of the commit
--       5 which life of the task this is: a deleted one must not write into its namesake
--
-- Returns 1 when done; 0 when refused: the token, the serial or the server is another one.
-- A repeat of a commit that was done finds another serial and is refused.

if redis.call('GET', KEYS[9]) ~= ARGV[1] then return 0 end
if (redis.call('HGET', KEYS[1], 'serial') or '0') ~= ARGV[2] then return 0 end
if not string.find(redis.call('INFO', 'server'), ARGV[3], 1, true) then return 0 end
if (redis.call('HGET', KEYS[15], 'life') or '') ~= ARGV[5] then return 0 end

local commit = cmsgpack.unpack(ARGV[4])
local serial = string.format('%d', tonumber(ARGV[2]) + 1)

local function write(key, changed, gone)
  for name, bytes in pairs(changed) do redis.call('HSET', key, name, bytes) end
  for _, name in ipairs(gone) do redis.call('HDEL', key, name) end
end

redis.call('HSET', KEYS[1], 'serial', serial, 'small', commit.small)
write(KEYS[2], commit.vectors, commit.gone_vectors)
write(KEYS[3], commit.windows, commit.gone_windows)
write(KEYS[4], commit.devices, {})
write(KEYS[5], commit.versions, {})
write(KEYS[6], commit.standing, commit.gone_standing)
write(KEYS[13], commit.spread, commit.swept)

if commit.spec then redis.call('SET', KEYS[10], commit.spec) end
if commit.manifest then redis.call('SET', KEYS[11], commit.manifest) end
redis.call('SET', KEYS[12], commit.metrics)

local at = 15
for i = 1, commit.renamed do
  if redis.call('EXISTS', KEYS[at + 1]) == 1 then redis.call('RENAME', KEYS[at + 1], KEYS[at + 2]) end
  at = at + 2
end
for i, bytes in ipairs(commit.blobs) do redis.call('SET', KEYS[at + i], bytes) end
for i = at + 1 + #commit.blobs, #KEYS do redis.call('DEL', KEYS[i]) end

for i, fields in ipairs(commit.out) do
  redis.call('XADD', KEYS[7], serial .. '-' .. i, unpack(fields))
end

for _, letter in ipairs(commit.dead) do
  redis.call('XADD', KEYS[8], letter[1], unpack(letter[2]))
end
if #commit.dead > 0 then redis.call('XTRIM', KEYS[8], 'MAXLEN', commit.dead_keep) end

if commit.log_keep then redis.call('XTRIM', KEYS[14], 'MINID', '~', commit.log_keep) end
return 1
