#!/bin/sh
# Starts the compose stack and checks it from outside, as its users see it. `make e2e` runs this. It removes what it
# started, volumes included.
set -eu

export COMPOSE_PROJECT_NAME=gopherproxy-e2e
export COMPOSE_PROFILES=https
limit=120
loader=
results=
attacker=
authority=

end() {
    status=$?
    trap '' EXIT HUP INT TERM
    [ -z "$loader" ] || kill "$loader" 2>/dev/null || true
    [ -z "$results" ] || rm -f "$results"
    [ -z "$attacker" ] || kill "$attacker" 2>/dev/null || true
    [ -z "$authority" ] || rm -f "$authority"
    if [ "$status" -ne 0 ]; then
        docker compose ps -a || true
        docker compose logs --tail 20 || true
    fi
    docker compose down --volumes --timeout 5 >/dev/null 2>&1 || true
    exit "$status"
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# until_true WHAT COMMAND…: polls the command until it succeeds.
until_true() {
    what=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt "$limit" ] || fail "never happened: $what"
        sleep 1
    done
    echo "ok: $what"
}

# How many different origins answer a dozen requests, sent slowly enough for the limit.
origins_answering() {
    for _ in 1 2 3 4 5 6; do
        curl -fsS http://localhost:8080/ 2>/dev/null || true
        sleep 0.6
    done | sort -u | grep -c '^hello from'
}

answer() {
    [ "$(origins_answering)" = "$1" ]
}

metric() {
    curl -fsS http://localhost:2112/metrics | sed -n "s/^$1 //p"
}

container() {
    docker compose ps -q "$1"
}

inspect() {
    docker inspect --format "$2" "$(container "$1")"
}

docker compose up --detach --wait --wait-timeout 300
echo "ok: all services are healthy"

until_true "three origins answer in turn" answer 3
curl -fsS http://localhost:2112/metrics | grep -qF "commit=\"${COMMIT:-}\"" || fail "the proxy does not tell the commit ${COMMIT:-}"
echo "ok: the commit it was built from is in its metrics"

# With the certificate that the stack has made: it has the right names, and a new container does not replace it.
authority=$(mktemp)
over_tls() {
    [ "$(curl -sS -o /dev/null --cacert "$authority" "$1" -w '%{http_code} %{http_version}' https://localhost:8443/)" = "200 $2" ]
}
docker compose cp https:/var/lib/gopherproxy/certificates/self-made-ca.pem "$authority" >/dev/null 2>&1 || fail "no authority"
until_true "HTTPS answers over HTTP/2" over_tls --http2 2
until_true "HTTPS answers over HTTP/1.1" over_tls --http1.1 1.1
docker compose rm --stop --force certificate https >/dev/null 2>&1
docker compose up --detach --wait --wait-timeout 300 >/dev/null 2>&1
until_true "the certificate is the same in a new container" over_tls --http2 2

docker compose stop origin2 >/dev/null 2>&1
until_true "a stopped origin leaves the pool" answer 2
docker compose start origin2 >/dev/null 2>&1
until_true "and joins it again" answer 3

sleep 3
codes=$(for _ in 1 2 3 4 5 6 7 8 9 10; do curl -s -o /dev/null -w '%{http_code}\n' http://localhost:8080/; done | sort | uniq -c | tr '\n' ' ')
echo "$codes" | grep -q 429 || fail "a flood sees no 429: $codes"
echo "ok: a flood sees 429 ($codes)"

members_before=$(docker compose exec -T redis redis-cli SMEMBERS gopher_backends | sort)
docker compose stop sentinel >/dev/null 2>&1
docker compose restart redis >/dev/null 2>&1
until_true "redis answers again" docker compose exec -T redis redis-cli ping
members_after=$(docker compose exec -T redis redis-cli SMEMBERS gopher_backends | sort)
[ "$members_before" = "$members_after" ] && [ -n "$members_after" ] || fail "redis lost the set: $members_after"
echo "ok: redis keeps the set through a restart, with no sentinel to write it again"
docker compose start sentinel >/dev/null 2>&1

curl -fsS http://localhost:3000/api/health >/dev/null || fail "Grafana does not answer"
docker compose exec -T grafana test -s /etc/grafana/provisioning/dashboards/gopherproxy.yml || fail "no provisioning"
docker compose exec -T grafana test -s /var/lib/grafana/dashboards/gopherproxy.json || fail "no dashboard"
echo "ok: Grafana answers and the dashboard is where it is provisioned from"
until_true "Prometheus scrapes the proxy and the sentinel" sh -c \
    'curl -fsS "http://localhost:9090/api/v1/query?query=sum(up)" | grep -q "\"2\"\]"'

for service in redis origin1 sentinel proxy https prometheus grafana; do
    [ "$(inspect $service '{{.HostConfig.ReadonlyRootfs}}')" = true ] || fail "$service can write its root file system"
    [ "$(inspect $service '{{.HostConfig.CapDrop}}')" = "[ALL]" ] || fail "$service has capabilities"
    inspect $service '{{.HostConfig.SecurityOpt}}' | grep -q no-new-privileges || fail "$service may gain privileges"
    [ "$(inspect $service '{{.HostConfig.Memory}}')" != 0 ] || fail "$service has no memory limit"
    [ "$(inspect $service '{{.HostConfig.RestartPolicy.Name}}')" = unless-stopped ] || fail "$service is not restarted"
done
for service in proxy https sentinel origin1; do
    [ "$(inspect $service '{{.Config.User}}')" = 1001:1001 ] || fail "$service runs as another user"
    bytes=$(docker image inspect --format '{{.Size}}' "$(inspect $service '{{.Image}}')")
    [ "$bytes" -le 14000000 ] || fail "the image of $service has $bytes bytes"
    echo "ok: the image of $service has $bytes bytes"
    if docker compose exec -T $service sh -c true >/dev/null 2>&1; then fail "$service has a shell"; fi
done
echo "ok: users, root file systems, capabilities, limits"

# An attack within the limits on clients: more heads that never end than one client may have the proxy hold. (Not many more: the log takes
# 1,000 lines of refusals of one client, and the end of this script counts lines.)
bash -c '
    ulimit -n 2048
    for _ in $(seq 200); do
        exec {head}<>/dev/tcp/127.0.0.1/8080 || break
        { printf "GET /held HTTP/1.1\r\nHost: a\r\nX: "; head -c 31000 /dev/zero | tr "\0" x; } >&$head
    done
    exec sleep 300' 2>/dev/null &
attacker=$!
held_too_much() {
    [ "$(metric 'gopherproxy_rejections_total{reason="held_too_much"}')" -ge 50 ]
}
is_idle() {
    [ "$(metric gopherproxy_inflight_requests)" = 0 ]
}
until_true "the oldest of many heads that never end make room" held_too_much
for _ in 1 2 3; do
    curl -fsS http://localhost:8080/ >/dev/null || fail "a request is not answered beside an attack"
    sleep 1
done
kill "$attacker"
attacker=
[ "$(inspect proxy '{{.State.OOMKilled}} {{.RestartCount}}')" = "false 0" ] || fail "the proxy did not survive an attack"
echo "ok: the proxy stays within its memory and answers beside an attack"
until_true "nothing is left of the attack" is_idle

# One request after the other while the proxy stops. What the proxy took it must have answered: as many requests are in its
# log as clients got answers. (429 is an answer. After the end, the engine's own forwarding resets connections: those
# never reached the proxy, and are in nobody's log.)
logged() {
    docker compose logs --no-log-prefix proxy | grep -c '"msg":"request"' || true
}
before=$(logged)
results=$(mktemp)
(while :; do curl -s -o /dev/null -w '%{http_code}\n' http://localhost:8080/ || true; done >"$results") &
loader=$!
sleep 2
docker compose stop proxy >/dev/null 2>&1
sleep 1
kill "$loader"
loader=
answered=$(grep -c -E '^(200|429)$' "$results") || true
taken=$(($(logged) - before))
[ "$taken" = "$answered" ] && [ "$taken" -gt 0 ] || fail "the proxy took $taken requests and $answered were answered"
echo "ok: stopping under load lost none of $taken requests"
[ "$(docker inspect --format '{{.State.ExitCode}}' "$(docker compose ps -aq proxy)")" = 0 ] || fail "the proxy did not leave with 0"

echo "all is well"
