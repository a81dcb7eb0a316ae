-- The requests of a closed loop for wrk, and its figures as one line "JSON {...}".
-- BENCH_HEADERS: header lines; BENCH_BODIES: a file with one body a line, sent in turn;
-- BENCH_MODE: "same" (heads repeat), "trace" (each request has its own traceparent) or "spread" (BENCH_CALLERS keys and
-- BENCH_PREFIXES different beginnings of the prompt, counted on from BENCH_FROM).
local mode = os.getenv("BENCH_MODE")
local heads, bodies, count = "", {}, tonumber(os.getenv("BENCH_FROM") or "0")
local callers = tonumber(os.getenv("BENCH_CALLERS") or "1")
local prefixes = tonumber(os.getenv("BENCH_PREFIXES") or "1")
local start = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"

function init(args)
  heads = os.getenv("BENCH_HEADERS"):gsub("\n", "\r\n")
  for line in io.lines(os.getenv("BENCH_BODIES")) do
    local tail = "Content-Length: " .. #line .. "\r\n\r\n" .. line
    if mode == "same" then tail = start .. heads .. tail end
    bodies[#bodies + 1] = tail
  end
end

function request()
  count = count + 1
  local body = bodies[count % #bodies + 1]
  if mode == "same" then return body end
  if mode == "trace" then
    return start .. heads .. string.format("traceparent: 00-%032x-%016x-01\r\n", count, count) .. body
  end
  local at = body:find('"content":"', 1, true) + 11
  return start .. heads .. string.format("Authorization: Bearer sk-bench-%05d\r\n", count % callers)
    .. body:sub(1, at - 1) .. string.format("%08d", count % prefixes) .. body:sub(at + 8)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nJSON {"requests":%d,"seconds":%.4f,"p50_ms":%.3f,"p99_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
