// The history: /admin/history as plots (uPlot), each with a table of the same numbers.
"use strict";
const plots = new Map();
let shown = {window: "hour", by: "", name: ""};
let drawnFor = "", drawn = null;

const ratio = (parts, wholes, factor = 1) =>
  wholes?.map((whole, slot) => whole ? factor * (parts?.[slot] ?? 0) / whole : null);
const none = view => Array(view.slots).fill(0);
const RATE_S = 5;

/** Seconds of a slot that have passed: the last one has only begun. */
const passed_s = (view, slot) => slot < view.slots - 1 ? view.slot_s : Math.min(Math.max(view.now_s - (view.first + slot) * view.slot_s, RATE_S), view.slot_s);
const per_s = (values, view) => (values ?? none(view)).map((value, slot) => value / passed_s(view, slot));
/** A mean of samples: there is none where nothing was sampled, such as before the router began. */
const sampled = (counters, name) => counters.samples?.map((samples, slot) => samples ? counters[name]?.[slot] ?? 0 : null);

/** Lines of one latency: named percentiles, and the SLO's bound where the view has one. */
function latency(view, metric) {
  const slo = view.slos[view.by === "class" ? view.name : view.default_class]?.[`${metric}_ms`];
  const lines = ["p50", "p90", "p99"].map(name => [name, view.latency_ms[metric]?.[name] ?? []]);
  if (slo) lines.push([`SLO (${view.by === "class" ? view.name : view.default_class})`, Array(view.slots).fill(slo), "dash"]);
  return lines;
}

/** One line a group of the dimension that is shown, or of all classes. */
function groups(view, of) {
  return Object.entries(view.groups).slice(0, 6).map(([name, counters]) => [name, of(counters)]);
}

const REASONS = ["saturated", "queue-full", "hold-expired", "infeasible", "unfair-share", "evicted", "no-backend",
  "unknown-model", "too-long", "client-error", "router-exhausted", "backend-failed", "first-byte-late"];

const PLOTS = [
  ["Requests per second", "/s", v => [["ended", per_s(v.counters.requests, v)], ["SLO met", per_s(v.counters.met, v)],
    ["refused", per_s(v.counters.refused, v)], ["failed", per_s(v.counters.failed, v)], ["client left", per_s(v.counters.left, v)]]],
  ["SLO attainment", "%", v => Object.keys(v.groups).length
    ? groups(v, c => ratio(c.met, c.requests, 100)) : [["all", ratio(v.counters.met, v.counters.requests, 100)]], [0, 100]],
  ["TTFT", "ms", v => latency(v, "ttft")],
  ["TPOT", "ms", v => latency(v, "tpot")],
  ["E2E", "ms", v => latency(v, "e2e")],
  ["In flight", "", v => v.by === "backend" && !v.name ? groups(v, c => sampled(c, "load"))
    : [["in flight", sampled(v.counters, "load")], ["held now", sampled(v.counters, "queue")]]],
  ["Held", "/s", v => [["requests held", per_s(v.counters.held, v)]]],
  ["Not served, by reason", "/s", v => REASONS.filter(name => v.counters[name]).slice(0, 6).map(name => [name, per_s(v.counters[name], v)])],
  ["Cost", "$/h", v => [["fleet", sampled(v.counters, "usd_per_hour")]]],
  ["Forecast of TTFT: typical error", "%", v => [["error", v.counters.predicted?.map((n, i) =>
    n ? 100 * (Math.exp((v.counters.error?.[i] ?? 0) / n) - 1) : null)]]],
  ["Forecast of TTFT: within its quantile", "%", v => [["actual", ratio(v.counters.covered, v.counters.predicted, 100)],
    ["wanted", ratio(v.counters.quantile, v.counters.predicted, 100), "dash"]], [0, 100]],
];

const colour = number => getComputedStyle(document.documentElement).getPropertyValue(`--s${number % 6 + 1}`).trim();
const tone = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Points without a neighbour: no line goes through them. */
const alone = (u, series) => u.data[series].flatMap((value, at, all) =>
  value != null && all[at - 1] == null && all[at + 1] == null ? [at] : []);

/** The values at one time, or the last ones; as the pointer goes over the plot. */
function draw_legend(made, slot) {
  const value = values => slot == null ? last(values) : values?.[slot];
  fill(made.legend, made.data.lines.map(([name, values], number) => h("li", {className: `c${number % 6 + 1}`}, `${name} ${num(value(values), Math.abs(value(values)) < 10 ? 2 : 1)}`)));
  const at = slot == null ? "" : clock(made.data.times[slot]);
  if (made.at.textContent !== at) made.at.textContent = at;
}

function options(made, lines, range, width) {
  const axis = {stroke: tone("--dim"), grid: {stroke: tone("--grid"), width: 1}, ticks: {stroke: tone("--grid")}, font: "11px system-ui"};
  return {
    width, height: 150, hooks: {setCursor: [u => draw_legend(made, u.cursor.idx)]}, cursor: {drag: {x: false, y: false}, points: {size: 6}}, legend: {show: false}, padding: [8, 18, 0, 0],
    scales: {y: {range: (_, low, high) => range ?? [0, high > 0 ? high * 1.1 : 1]}},
    axes: [{...axis, size: 28, values: (_, ticks) => ticks.map(minute)}, {...axis, size: 52, values: (_, ticks) => ticks.map(tick => tick >= 1e4 ? `${tick / 1e3}k` : `${+tick.toFixed(2)}`)}],
    series: [{}, ...lines.map(([label, , dash], number) => ({
      label, stroke: colour(number), width: dash ? 1.5 : 2, dash: dash ? [6, 4] : undefined, spanGaps: false, points: {show: true, size: 5, filter: alone}}))],
  };
}

const last = values => values?.findLast(value => value != null);

/** What a plot says, for those who cannot see it. */
function summary(title, unit, lines) {
  const parts = lines.map(([name, values]) => {
    const there = values.filter(value => value != null);
    return there.length ? `${name}: now ${num(last(values), 2)}, lowest ${num(Math.min(...there), 2)}, highest ${num(Math.max(...there), 2)} ${unit}`
      : `${name}: no value`;
  });
  return `${title}. ${parts.join("; ")}.`;
}

function table(times, lines, unit) {
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "time"),
    lines.map(([name]) => h("th", {scope: "col", className: "n"}, `${name} ${unit}`)))),
  h("tbody", {}, times.map((time, slot) => [time, slot]).reverse().map(([time, slot]) => h("tr", {}, h("th", {scope: "row"}, day(time)),
    lines.map(([, values]) => h("td", {className: "n"}, num(values?.[slot], 2)))))));
}

function figure(title, unit) {
  const made = {
    legend: h("ul", {className: "legend"}), plot: h("div", {className: "plot", role: "img"}),
    rows: h("div", {className: "scroll", tabIndex: 0, role: "region", "aria-label": `${title}: table`}), uplot: null, data: null,
  };
  made.details = h("details", {}, h("summary", {}, "as a table"), made.rows);
  made.details.addEventListener("toggle", () => rows(made, unit));
  made.at = h("span", {className: "at", "aria-hidden": "true"});
  made.root = h("figure", {}, h("figcaption", {}, unit ? `${title} (${unit})` : title, made.at), made.legend, made.plot, made.details);
  return made;
}

function rows(made, unit) {
  if (made.details.open && made.data) made.rows.replaceChildren(table(made.data.times, made.data.lines, unit));
}

function draw_plot(title, unit, view, times, of, range) {
  const made = plots.get(title) ?? figure(title, unit);
  plots.set(title, made);
  const lines = of(view).filter(([, values]) => values?.some(value => value != null)).map(([name, values, dash]) => [name, values, dash]);
  made.data = {times, lines};
  draw_legend(made, made.uplot?.cursor.idx);
  made.plot.setAttribute("aria-label", summary(title, unit, lines));
  const names = JSON.stringify(lines.map(([name]) => name));
  if (made.uplot && made.names === names) made.uplot.setData([times, ...lines.map(([, values]) => values)]);
  else {
    made.uplot?.destroy();
    made.uplot = null;
    made.names = names;
    made.plot.replaceChildren();
    if (!made.root.isConnected) el("plots").append(made.root);
    if (lines.length) made.uplot = new uPlot(options(made, lines, range, made.plot.clientWidth || 360), [times, ...lines.map(([, values]) => values)], made.plot);
    else made.plot.append(h("div", {className: "empty"}, "nothing in this time"));
  }
  rows(made, unit);
}

/** Fill a select, if its options are others than before. */
function choose(select, values, now) {
  const names = JSON.stringify(values);
  if (select.dataset.names !== names) {
    select.dataset.names = names;
    select.replaceChildren(...values.map(([value, label]) => h("option", {value}, label)));
  }
  select.value = now;
}

function draw_history(view) {
  drawn = view;
  choose(el("by"), [["", "all requests"], ["class", "SLO class"], ["model", "model"], ["tenant", "tenant"], ["backend", "backend"], ["arm", "canary"]], shown.by);
  el("name-label").hidden = !shown.by;
  if (shown.by) choose(el("name"), [["", `each ${el("by").selectedOptions[0].label}`], ...view.names[shown.by].map(name => [name, name])], shown.name);
  const times = Array.from({length: view.slots}, (_, slot) => (view.first + slot) * view.slot_s);
  for (const [title, unit, of, range] of PLOTS) draw_plot(title, unit, view, times, of, range);
}

/** The groups of a view on the slots of another: those of backends are longer. */
function onto(view, whole) {
  const at = slot => Math.floor((whole.first + slot) * whole.slot_s / view.slot_s) - view.first;
  const moved = values => Array.from({length: whole.slots}, (_, slot) => values[at(slot)] ?? 0);
  const each = counters => Object.fromEntries(Object.entries(counters).map(([name, values]) => [name, moved(values)]));
  return Object.fromEntries(Object.entries(view.groups).map(([name, counters]) => [name, each(counters)]));
}

/** The view of the selects. Of a dimension without a name: its groups, and the rest of all requests. */
async function history_now() {
  const wanted = JSON.stringify(shown);
  const query = new URLSearchParams({window: shown.window, by: shown.by || "class", name: shown.by ? shown.name : ""});
  const named = shown.by && shown.name;
  const view = await ask(`admin/history?${query}`);
  const all = named ? null : await ask(`admin/history?window=${shown.window}`);
  const whole = named ? view : {...all, groups: onto(view, all), by: shown.by, name: ""};
  if (named) whole.groups = {};
  if (wanted !== JSON.stringify(shown)) return;
  if (drawnFor !== wanted) for (const made of plots.values()) made.names = null;
  drawnFor = wanted;
  draw_history(whole);
}

/** With other colours or another width: of what was read last, whether the router answers or not. */
function redraw_plots() {
  for (const made of plots.values()) made.names = null;
  if (drawn) draw_history(drawn);
}

/** What was chosen is drawn at once, or with the next round where the router does not answer. */
const chosen = () => history_now().catch(() => {});

el("windows").addEventListener("click", event => {
  if (!event.target.dataset.window) return;
  pressed(el("windows"), event.target);
  shown.window = event.target.dataset.window;
  chosen();
});
el("by").addEventListener("change", () => { shown = {...shown, by: el("by").value, name: ""}; chosen(); });
el("name").addEventListener("change", () => { shown.name = el("name").value; chosen(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw_plots);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw_plots, 200); });
