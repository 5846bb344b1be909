-- What wrk sends, told by the words after `--`, and its result as one line of JSON.
--
--   get            the request that wrk makes by itself
--   gzip           the same, from a client that accepts gzip
--   close          the same, and the connection closes after each
--   upload BYTES   a POST with a body
--   clients COUNT  a GET for each of so many client addresses in turn, told in X-Forwarded-For

local requests = {}
local sent = 0

function init(args)
    local kind, count = args[1], tonumber(args[2])
    if kind == "close" then
        requests[1] = wrk.format("GET", nil, { Host = wrk.headers["Host"], Connection = "close" })
    elseif kind == "gzip" then
        requests[1] = wrk.format("GET", nil, { Host = wrk.headers["Host"], ["Accept-Encoding"] = "gzip" })
    elseif kind == "upload" then
        requests[1] = wrk.format("POST", nil, nil, string.rep("x", count))
    elseif kind == "clients" then
        for number = 0, count - 1 do
            local address = string.format("10.%d.%d.%d", number / 65536 % 256, number / 256 % 256, number % 256)
            requests[number + 1] =
                wrk.format("GET", nil, { Host = wrk.headers["Host"], ["X-Forwarded-For"] = address })
        end
    else
        requests[1] = wrk.format("GET")
    end
end

function request()
    sent = sent % #requests + 1
    return requests[sent]
end

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format(
        'RESULT {"requests": %d, "seconds": %.6f, "p50_us": %.1f, "p99_us": %.1f, '
            .. '"refused": %d, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
