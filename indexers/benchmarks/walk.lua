-- For wrk: asks for the paths of a file, one a line, one after the other; each thread takes every n-th of them.
-- With a PATH the lines are JSON that is posted there.
-- wrk ... -s walk.lua URL -- FILE FIRST THREADS [PATH]
-- At the end it prints one line of JSON: requests, seconds, percentiles in milliseconds, statuses, errors.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  threads[#threads + 1] = thread
end

function init(args)
  requests = {}
  for line in io.lines(args[1]) do
    if args[4] then
      requests[#requests + 1] = wrk.format("POST", args[4], { ["Content-Type"] = "application/json" }, line)
    else
      requests[#requests + 1] = wrk.format("GET", line)
    end
  end
  place = tonumber(args[2]) + number
  step = tonumber(args[3])
  statuses = {}
end

function request()
  local found = requests[place % #requests + 1]
  place = place + step
  return found
end

function response(status)
  local name = tostring(status)
  statuses[name] = (statuses[name] or 0) + 1
end

local function object(counts)
  local parts = {}
  for name, count in pairs(counts) do
    parts[#parts + 1] = string.format('"%s":%d', name, count)
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

function done(summary, latency, _)
  local counted = {}
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("statuses")) do
      counted[name] = (counted[name] or 0) + count
    end
  end
  local percentiles = {}
  for percent = 1, 99 do
    percentiles[percent] = string.format("%.3f", latency:percentile(percent) / 1000)
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"worst":%.3f,"percentiles":[%s],"statuses":%s,"errors":%s}\n',
    summary.requests, summary.duration / 1e6, latency.max / 1000, table.concat(percentiles, ","), object(counted),
    object({ connect = errors.connect, read = errors.read, write = errors.write, timeout = errors.timeout })))
end
