// Users that come through the proxy as its own users do: many clients, nearly all of them well-behaved.
//
//     PROXY_URL=http://localhost:8080 k6 run -e SCENARIO=load loadtest/k6.js
//
// SCENARIO is smoke (the default), load, spike or sustained; K6_SHORT=1 makes it last 10 to 20 s. The proxy has to believe
// this machine's X-Forwarded-For: start it with TRUSTED_PROXIES set to the address it sees us come from (127.0.0.0/8 for
// one on the same machine). A table is printed, k6-results-<scenario>.json written; exit code 99 means a broken promise.
//
// The proxy allows each client address a burst of 5 and 2 requests a second, and we are one address. So:
//
// - A *good* client keeps to its limit. Each user owns a range of addresses that nobody else has, takes them in turn, and lets
//   each rest for half a second after its answer before it speaks again. That holds on any machine, however slow or
//   uneven, so a good client that is refused is the proxy's fault, and one is enough to fail.
// - A *bad* client hammers. Users share a few bad addresses, so that each is fifty times over its limit in `load`: a user
//   makes ten requests a second there and one of them is bad, which from an address of its own would be no offence.
// - A user owes a fixed share of refusals, and a debt is paid only by a 429. So the share of 429 does not depend on the
//   machine's speed or on how much the bad addresses are allowed. What they are allowed is counted, and may not exceed
//   what the limit promises: a limiter that leaks fails, and so does one that refuses nothing.
//
// A user's next request is due at a time of its own, not a pause after the last answer, so a proxy that is slow by less
// than that pace sees no less traffic for it.
//
// k6 itself needs most of a core for `load`, and its garbage collector more. Where it shares few cores with the proxy, run it
// as k6.sh does, with GOGC=off GOMEMLIMIT=2GiB, or the p95 is the collector's.

import { sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Rate } from 'k6/metrics';

import { report } from './k6/report.js';

// The proxy's default limit for a client.
const BURST = 5;
const PER_SECOND = 2;

// For each scenario:
//   pace     milliseconds from one request of a user to its next, on average. With all users there it makes a throughput
//            just above the documented one: 1000, 5000, 5000 and 3200 requests a second.
//   refused  the share of requests that end in 429, the middle of the documented range
//   range    that range; k6 needs the bounds as text
//   p95      milliseconds: what good clients may wait, the upper end of the documented range where there is one
//   start, steps, short   users at the start, then [seconds, users at their end]; `short` replaces `steps` in CI
const SCENARIOS = {
  smoke: {
    pace: 10,
    refused: 0,
    range: ['rate==0'],
    p95: 15,
    start: 10,
    steps: [[30, 10]],
    short: [[10, 10]],
  },
  load: {
    pace: 100,
    refused: 0.11,
    range: ['rate>=0.10', 'rate<=0.12'],
    p95: 35,
    start: 0,
    steps: [[15, 100], [15, 300], [15, 500], [180, 500]],
    short: [[2, 100], [2, 300], [2, 500], [10, 500]],
  },
  spike: {
    pace: 100,
    refused: 0.175,
    range: ['rate>=0.15', 'rate<=0.20'],
    p95: 50,
    start: 10,
    steps: [[10, 10], [5, 500], [60, 500], [5, 10], [10, 10]],
    short: [[2, 10], [5, 500], [8, 500], [1, 10], [1, 10]],
  },
  sustained: {
    pace: 62.5,
    refused: 0.09,
    range: ['rate>=0.08', 'rate<=0.10'],
    p95: 25,
    start: 200,
    steps: [[300, 200]],
    short: [[15, 200]],
  },
};

const name = __ENV.SCENARIO || 'smoke';
const scenario = SCENARIOS[name];
if (!scenario) {
  throw new Error(`SCENARIO is "${name}"; it can be ${Object.keys(SCENARIOS).join(', ')}`);
}
const short = !['', '0', 'false', undefined].includes(__ENV.K6_SHORT);
const url = `${(__ENV.PROXY_URL || 'http://localhost:8080').replace(/\/+$/, '')}/`;

const steps = short ? scenario.short : scenario.steps;
const users = Math.max(...steps.map(([, target]) => target));
const seconds = steps.reduce((sum, [length]) => sum + length, 0);
// The stretch with all users there: what a throughput "at 500 users" is measured over.
const last = steps.findLastIndex(([, target]) => target === users);
const heldTo = steps.slice(0, last + 1).reduce((sum, [length]) => sum + length, 0);
const heldSeconds = steps[last][0];
const heldFrom = heldTo - heldSeconds;

// The short form tells a proxy that works from one that doesn't, on machines that are busy with other things: there a
// second is a proxy that hangs, and anything less says nothing.
const p95 = short ? 1000 : scenario.p95;

// One bad address for every hundred users: few enough that each is far over its limit even where users are slowed down.
const BAD_ADDRESSES = Math.ceil(users / 100);
// Requests still under way at the end get this long.
const GRACE_SECONDS = 5;
// setup() makes requests too, but has no scenario.
const OURS = `scenario:${name}`;

const thresholds = {
  [`limited{${OURS}}`]: scenario.range,
  'limited{client:good}': ['rate==0'],
  [`http_req_failed{${OURS}}`]: ['rate<0.0001'],
  'http_req_duration{client:good}': [`p(95)<${p95}`],
  // Without a bound of their own: k6 keeps count of a part only if it has an entry here.
  [`http_req_duration{${OURS}}`]: [],
  'http_req_failed{client:good}': [],
  'limited{phase:held}': [],
  'http_req_failed{phase:held}': [],
  'http_req_duration{phase:held}': [],
};
if (scenario.refused > 0) {
  const allowed = BAD_ADDRESSES * (BURST + PER_SECOND * (seconds + GRACE_SECONDS));
  thresholds['http_reqs{client:bad,status:200}'] = [`count<=${allowed}`];
  thresholds['limited{client:bad}'] = [];
  thresholds['http_req_failed{client:bad}'] = [];
  thresholds['http_req_duration{client:bad}'] = [];
}

export const options = {
  scenarios: {
    [name]: {
      executor: 'ramping-vus',
      startVUs: scenario.start,
      stages: steps.map(([length, target]) => ({ duration: `${length}s`, target })),
      gracefulStop: `${GRACE_SECONDS}s`,
      gracefulRampDown: `${GRACE_SECONDS}s`,
    },
  },
  thresholds,
  discardResponseBodies: true,
  summaryTrendStats: ['avg', 'min', 'med', 'p(95)', 'p(99)', 'max'],
};

// Whether the proxy refused the client for its rate.
const limited = new Rate('limited');

// 10.0.0.0/8 in 4096 ranges of 4096: a range for each user from 1, the first for setup(), the last for the bad.
const RANGE = 4096;
const SETUP = 0;
const BAD = 4095;

function address(range, host) {
  const n = range * RANGE + host;
  return `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`;
}

// A bad client is told 429 by right, so that is no error; a good one never is.
const EXPECTED = {
  good: http.expectedStatuses({ min: 200, max: 299 }),
  bad: http.expectedStatuses({ min: 200, max: 299 }, 429),
};

function ask(client, from, tags) {
  return http.get(url, {
    headers: { 'X-Forwarded-For': from },
    responseCallback: EXPECTED[client],
    tags,
    timeout: `${GRACE_SECONDS}s`,
  });
}

// A run that measures something else than it seems to is worse than none.
export function setup() {
  const askFrom = (host) => ask('bad', address(SETUP, host), {});
  const first = askFrom(0);
  if (first.status === 0) {
    exec.test.abort(`nothing answers at ${url} (${first.error}); start the proxy, or set PROXY_URL`);
  }
  for (let host = 1; host <= 2 * BURST; host += 1) {
    const { status } = askFrom(host);
    if (status === 429) {
      exec.test.abort(
        `${url} takes us for one client: start the proxy with TRUSTED_PROXIES set to the address it sees us come from`,
      );
    }
    if (status !== 200) {
      exec.test.abort(`${url} answers ${status}; the proxy and its origins have to work before they are measured`);
    }
  }
  const statuses = Array.from({ length: 3 * BURST }, () => askFrom(0).status);
  if (!statuses.includes(429)) {
    exec.test.abort(`${url} refuses nobody; its limit has to be the default, ${BURST} at once and ${PER_SECOND} a second`);
  }
}

// How long a good address rests after its answer: a request's worth of its limit, so that its bucket never runs empty.
const REST = 1000 / PER_SECOND;
// At this pace each good address speaks about once a second, half of what it may, and seldom has to be waited for.
const GOOD_ADDRESSES = Math.ceil(1000 / scenario.pace);

// k6 runs this file once for each user, so this is one user's state. Its number is not known before its first request.
let user;

function arrive() {
  const id = exec.vu.idInTest;
  return {
    addresses: Array.from({ length: GOOD_ADDRESSES }, (_, host) => ({ text: address(id, host), ready: 0 })),
    turn: 0,
    started: exec.scenario.startTime,
    // Users who come at the same moment must not act in step.
    due: Date.now() + Math.random() * scenario.pace,
    owed: Math.random(),
  };
}

function until(time) {
  const wait = time - Date.now();
  if (wait > 0) {
    sleep(wait / 1000);
  }
}

function phase() {
  const elapsed = (Date.now() - user.started) / 1000;
  return elapsed >= heldFrom && elapsed < heldTo ? 'held' : 'ramp';
}

// Makes one request and tells whether it was refused.
function request(client, from) {
  const tags = { client, phase: phase() };
  const refused = ask(client, from, tags).status === 429;
  limited.add(refused, tags);
  return refused;
}

export default function () {
  user = user || arrive();
  until(user.due);
  // Half to one and a half: an even beat would spare the proxy the small crowds that real traffic brings. A user who is
  // late starts afresh and does not catch up: that would make a slow moment a burst.
  user.due = Math.max(user.due + scenario.pace * (0.5 + Math.random()), Date.now());

  user.owed += scenario.refused;
  if (user.owed >= 1) {
    const refused = request('bad', address(BAD, Math.floor(Math.random() * BAD_ADDRESSES)));
    user.owed -= refused ? 1 : 0;
    return;
  }

  const from = user.addresses[user.turn];
  user.turn = (user.turn + 1) % user.addresses.length;
  until(from.ready);
  request('good', from.text);
  from.ready = Date.now() + REST;
}

export function handleSummary(data) {
  return report(data, { name, short, url, users, seconds, heldSeconds, ours: OURS });
}
