// What a run is judged by, as a table and as a file. It replaces k6's own summary.

// The parts of a run that have a row: the tag each is known by in the names of k6's metrics.
function parts(run) {
  return {
    all: run.ours,
    'good clients': 'client:good',
    'bad clients': 'client:bad',
    [`${run.users} users`]: 'phase:held',
  };
}

function row(metrics, tag, seconds) {
  const values = (metric) => (metrics[`${metric}{${tag}}`] || {}).values;
  const limited = values('limited');
  const requests = limited ? limited.passes + limited.fails : 0;
  if (requests === 0) {
    return null;
  }
  const took = values('http_req_duration');
  return {
    requests,
    per_second: requests / seconds,
    p50_ms: took.med,
    p95_ms: took['p(95)'],
    p99_ms: took['p(99)'],
    limited: limited.rate,
    failed: values('http_req_failed').rate,
  };
}

const COLUMNS = [
  ['requests', (r) => String(r.requests)],
  ['req/s', (r) => r.per_second.toFixed(0)],
  ['p50 ms', (r) => r.p50_ms.toFixed(2)],
  ['p95 ms', (r) => r.p95_ms.toFixed(2)],
  ['p99 ms', (r) => r.p99_ms.toFixed(2)],
  ['429 %', (r) => (100 * r.limited).toFixed(2)],
  ['errors %', (r) => (100 * r.failed).toFixed(3)],
];

function table(rows) {
  const line = (label, cells) => `  ${label.padEnd(14)}${cells.map((cell) => cell.padStart(11)).join('')}`;
  return [
    line('', COLUMNS.map(([title]) => title)),
    ...Object.entries(rows).map(([label, r]) => line(label, COLUMNS.map(([, show]) => (r ? show(r) : '-')))),
  ];
}

function promises(metrics) {
  return Object.keys(metrics)
    .sort()
    .flatMap((metric) =>
      Object.entries(metrics[metric].thresholds || {}).map(([bound, { ok }]) => ({ metric, bound, ok })),
    );
}

// `run`: name, short, url, users, seconds, heldSeconds (with all users there), ours (the tag of the scenario's requests).
export function report(data, run) {
  const rows = {};
  for (const [label, tag] of Object.entries(parts(run))) {
    rows[label] = row(data.metrics, tag, tag === 'phase:held' ? run.heldSeconds : run.seconds);
  }
  if (!rows.all) {
    // The reason stands above, and results of an earlier run are worth more than none.
    return { stdout: '\nNo request was measured.\n' };
  }
  const kept = promises(data.metrics);
  const text = [
    '',
    `  ${run.name}${run.short ? ' (short)' : ''}: ${run.users} users, ${run.seconds} s, ${run.url}`,
    '',
    ...table(rows),
    '',
    ...kept.map(({ metric, bound, ok }) => `  ${ok ? 'kept  ' : 'BROKEN'}  ${metric} ${bound}`),
    '',
    '',
  ].join('\n');
  const results = {
    scenario: run.name,
    short: run.short,
    url: run.url,
    users: run.users,
    seconds: run.seconds,
    ended: new Date().toISOString(),
    rows,
    thresholds: kept,
    metrics: data.metrics,
  };
  return { stdout: text, [`k6-results-${run.name}.json`]: `${JSON.stringify(results, null, 2)}\n` };
}
