// Checks ../dashboards/gopherproxy.json without a Grafana: `npm install --no-audit --no-fund && npm run check`.
//
// - Types: the JSON, as a TypeScript literal, must be a `Dashboard` of @grafana/schema, and each panel's options, fields,
//   queries and units must be those of its own panel type. A literal, because an imported JSON would escape TypeScript's check
//   for properties that do not exist. Faults made on purpose must be found, so that a type of `any` can't hide one.
// - Queries: Prometheus's own grammar reads each; its metrics are in the table of docs/metrics.md, its legend's labels in its result.
// - Layout: titles that users know, unique ids, nothing overlaps, no panel type that is deprecated.
//
// Grafana's major version is that of @grafana/schema: raise both together.

import { readFileSync } from "node:fs";
import path from "node:path";
import { defaultDashboard } from "@grafana/schema";
import { parser } from "@prometheus-io/lezer-promql";
import ts from "typescript";

const here = import.meta.dirname;
const read = (...parts) => readFileSync(path.join(here, ...parts), "utf8");
const dashboard = JSON.parse(read("../dashboards/gopherproxy.json"));
const panels = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
const problems = [];
const check = (ok, problem) => ok || problems.push(problem);

// Types. Enums come as their values, because that is what JSON has.
const TYPES = `
import type { Dashboard, FieldColor, FieldConfig, MatcherConfig, Panel, RowPanel } from "@grafana/schema";
import type * as gauge from "@grafana/schema/dist/esm/raw/composable/gauge/panelcfg/x/GaugePanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type { Dataquery } from "@grafana/grafana-foundation-sdk/prometheus";
import type * as units from "@grafana/grafana-foundation-sdk/units";

type Json<T> = T extends string ? \`\${T}\`
  : T extends number | boolean | null | undefined ? T
  : T extends readonly (infer E)[] ? Json<E>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;

type Query = Omit<Dataquery, "_implementsDataqueryVariant" | "datasource"> & {
  datasource: { type: "prometheus"; uid: "prometheus" }; refId: string; legendFormat: string;
};
type Fields<Custom> = Omit<FieldConfig, "custom" | "unit"> & { custom?: Custom; unit: (typeof units)[keyof typeof units] };
type Override = { matcher: MatcherConfig; properties: { id: "color"; value: FieldColor }[] };
type Of<Type, Options, Custom> = Json<Omit<Panel, "type" | "options" | "fieldConfig" | "targets" | "datasource"> & {
  type: Type; id: number; title: string; description: string; datasource: Query["datasource"]; targets: Query[];
  options: Options; fieldConfig: { defaults: Fields<Custom>; overrides: Override[] };
}>;
type Types = {
  gauge: Of<"gauge", gauge.Options, never>;
  row: Json<RowPanel>;
  stat: Of<"stat", stat.Options, never>;
  timeseries: Of<"timeseries", timeseries.Options, timeseries.FieldConfig>;
};
type Whole = Json<Dashboard>;
`;

// One source file for the dashboard and each panel, so that an error is reported with the panel's title.
const sources = new Map();
const source = (name, type, value) =>
  sources.set(path.join(here, `${name}.ts`), `${TYPES}export const it: ${type} = ${JSON.stringify(value, null, 1)};\n`);
source("dashboard", "Whole", dashboard);
for (const panel of panels) source(`panel ${panel.id}`, `Types[${JSON.stringify(panel.type)}]`, panel);

const FAULTS = {
  "a value that the enum lacks": (panel) => (panel.options.legend.displayMode = "tabel"),
  "an option that does not exist": (panel) => (panel.options.legends = panel.options.legend),
  "a field setting that does not exist": (panel) => (panel.fieldConfig.defaults.custom.fill = 1),
  "a unit that Grafana lacks": (panel) => (panel.fieldConfig.defaults.unit = "req/s"),
  "another data source": (panel) => (panel.targets[0].datasource = { type: "prometheus", uid: "other" }),
  "a query without a refId": (panel) => delete panel.targets[0].refId,
};
const sound = panels.find((panel) => panel.type === "timeseries");
for (const [fault, make] of Object.entries(FAULTS)) {
  const panel = structuredClone(sound);
  make(panel);
  source(`fault ${fault}`, "Types['timeseries']", panel);
}

const options = {
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  noEmit: true,
  skipLibCheck: true,
  strict: true,
  target: ts.ScriptTarget.ESNext,
  types: [],
};
const host = ts.createCompilerHost(options);
const { fileExists, getSourceFile } = host;
host.fileExists = (file) => sources.has(path.normalize(file)) || fileExists(file);
host.getSourceFile = (file, ...rest) => {
  const text = sources.get(path.normalize(file));
  return text === undefined ? getSourceFile(file, ...rest) : ts.createSourceFile(file, text, options.target);
};
const program = ts.createProgram([...sources.keys()], options, host);
const errors = new Map();
for (const { file, start, messageText } of ts.getPreEmitDiagnostics(program)) {
  const line = file?.text.slice(start).split("\n", 1)[0].trim();
  const name = file ? path.basename(file.fileName, ".ts") : "TypeScript";
  errors.set(name, [...(errors.get(name) ?? []), `${line ?? ""}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`]);
}
for (const fault of Object.keys(FAULTS)) check(errors.delete(`fault ${fault}`), `the types let through ${fault}`);
for (const [name, messages] of errors) {
  const title = panels.find((panel) => `panel ${panel.id}` === name)?.title ?? name;
  for (const message of messages) check(false, `${title}: ${message}`);
}

// Layout.
const KNOWN = [
  "Request Rate",
  "Latency Percentiles",
  "Active Backends",
  "Backend Health Over Time",
  "Total Processed",
  "Total Dropped",
  "Success Rate %",
];
KNOWN.forEach((title, index) => check(panels[index]?.title === title, `panel ${index + 1} is not ${title}`));
check(dashboard.uid === "gopherproxy" && dashboard.title === "GopherProxy", "uid or title of the dashboard");
check(dashboard.schemaVersion === defaultDashboard.schemaVersion, `schemaVersion is not ${defaultDashboard.schemaVersion}`);
const provisioned = read("../provisioning/datasources/prometheus.yml");
check(/^ +uid: prometheus$/m.test(provisioned), "the data source that is provisioned has another uid");
check(new Set(panels.map((panel) => panel.id)).size === panels.length, "an id is used twice");
check(new Set(panels.map((panel) => panel.title)).size === panels.length, "a title is used twice");
panels.forEach((panel, index) => {
  const { x, y, w, h } = panel.gridPos;
  check(["timeseries", "stat", "gauge", "row"].includes(panel.type), `${panel.title}: type ${panel.type}`);
  check(x >= 0 && y >= 0 && w > 0 && h > 0 && x + w <= 24, `${panel.title}: outside the grid`);
  for (const { title, gridPos: other } of panels.slice(index + 1)) {
    const apart = x + w <= other.x || other.x + other.w <= x || y + h <= other.y || other.y + other.h <= y;
    check(apart, `${panel.title} overlaps ${title}`);
  }
  const refs = (panel.targets ?? []).map((target) => target.refId);
  check(new Set(refs).size === refs.length && (refs.length > 0 || panel.type === "row"), `${panel.title}: its refIds`);
});

// Queries. In docs/metrics.md `…` stands for the sentinel's prefix, and `process_*` for what Prometheus's client libraries export.
const PROCESS = ["cpu_seconds_total", "max_fds", "open_fds", "resident_memory_bytes", "start_time_seconds", "threads", "virtual_memory_bytes"];
const metrics = new Set(PROCESS.map((name) => `process_${name}`));
for (const [, names, types] of read("../../../docs/metrics.md").matchAll(/^\| (`(?:gopherproxy_|…).*?`) \| ([a-z, ]+) \|/gm)) {
  const kinds = types.split(", ");
  [...names.matchAll(/`([\w…*]+)/g)].forEach(([, name], index) => {
    const metric = name.replace("…", "gopherproxy_sentinel");
    const suffixes = (kinds[index] ?? kinds[0]) === "histogram" ? ["_bucket", "_count", "_sum"] : [""];
    for (const suffix of suffixes) if (!name.includes("*")) metrics.add(metric + suffix);
  });
}
check(metrics.size > 20, `only ${metrics.size} metrics found in docs/metrics.md`);

const queries = panels.flatMap((panel) => (panel.targets ?? []).map((target) => ({ panel, ...target })));
for (const { panel, expr, legendFormat } of queries) {
  const labels = [];
  let grouped = false;
  parser.parse(expr).iterate({
    enter({ type, from, to, node }) {
      const text = expr.slice(from, to);
      check(!type.isError, `${panel.title}: not PromQL at ${from}: ${expr}`);
      if (type.name === "Identifier" && node.parent.name === "VectorSelector")
        check(metrics.has(text), `${panel.title}: ${text} is not in docs/metrics.md`);
      if (type.name === "GroupingLabels") grouped = true;
      if (type.name === "LabelName" && node.parent.name === "GroupingLabels") labels.push(text);
    },
  });
  for (const [, label] of legendFormat.matchAll(/{{(\w+)}}/g))
    check(!grouped || labels.includes(label), `${panel.title}: its result has no label ${label}`);
}

for (const problem of problems) console.error(problem);
const counts = `${panels.length} panels and rows, ${queries.length} queries, ${metrics.size} metrics known`;
console.log(`${counts}, ${Object.keys(FAULTS).length} faults made on purpose: ${problems.length} problems`);
process.exitCode = problems.length === 0 ? 0 : 1;
