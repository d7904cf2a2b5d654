// The cards of backends: those with a problem first. At most so many at once; the filter finds the others.
"use strict";
const CARDS = 24;
let cards = CARDS;

const bar = (part, whole, text) => {
  const fullness = h("i");
  fullness.style.width = `${whole ? Math.min(100, 100 * part / whole) : 0}%`;
  return h("div", {className: "meter"}, fullness, h("span", {}, text));
};

function check(b) {
  const c = b.check;
  if (!c) return null;
  if (c.at_s == null) return h("div", {className: "facts"}, `no health check of ${c.url} has ended yet`);
  if (!c.failure) return b.down.length ? h("div", {className: "facts"}, `last health check passed at ${clock(c.at_s)}`) : null;
  const got = b.down.some(d => d.why === `${c.failure} at ${c.url}`) ? "the same" : `${c.failure} at ${c.url}`;
  return h("div", {className: "facts bad"}, `last health check ${clock(c.at_s)}: ${got}, ${c.in_a_row} in a row; next one ${clock(c.next_s)}`);
}

function failures(b) {
  const f = b.failures, lines = [];
  for (const r of f.refuses) lines.push(["warn", `not chosen for ${r.what} from ${clock(r.since_s)} to ${clock(r.until_s)}: ${r.why}`]);
  if (f.ejected) lines.push(["bad", `ejected since ${clock(f.ejected.since_s)} after ${f.in_a_row} faults in a row: ${f.ejected.why}; tried again at ${clock(f.ejected.until_s)}`]);
  else if (f.last) lines.push([f.in_a_row ? "warn" : "dim", `last failure ${clock(f.last.at_s)}, ${f.in_a_row} faults in a row: ${f.last.why}`]);
  return lines.map(([tone, text]) => h("div", {className: `facts ${tone}`}, text));
}

function last_minute(b) {
  const l = b.last, e = b.engine;
  const row = (name, ...cells) => h("tr", {}, h("th", {scope: "row"}, name), cells.map(cell => h("td", {className: "n"}, cell)));
  return [
    h("table", {}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "last minute"), h("th", {scope: "col", className: "n"}, "mean"),
      h("th", {scope: "col", className: "n"}, "forecast ", b.forecast ? h("span", {className: {trusted: "good", off: "bad"}[b.forecast] ?? "warn"}, b.forecast) : ""))),
    h("tbody", {}, row("TTFT ms", num(l.ttft_ms), h("span", {className: off(l.ttft_ms, l.ttft_predicted_ms)}, num(l.ttft_predicted_ms))),
      row("TPOT ms", num(l.tpot_ms, 1), h("span", {className: off(l.tpot_ms, l.tpot_predicted_ms)}, num(l.tpot_predicted_ms, 1))))),
    h("div", {className: "facts"}, `${l.requests} requests, SLO met ${share(l.slo_met, l.requests)}, ${num(l.output_tokens_per_s)} tokens/s`),
    h("div", {className: "facts"}, e ? `engine reports ${num(e.running)} running, ${num(e.waiting)} waiting (${num(e.age_s, 1)} s ago)` : "no report of the engine"),
  ];
}

function card(b) {
  const running = b.load.prefilling + b.load.decoding, down = b.down.length > 0, ejected = b.failures.ejected;
  const drained = b.down.some(d => d.reason === "drained");
  const state = drained ? "drained" : down ? `down: ${b.down[0].reason}` : ejected ? "ejected" : b.protocol;
  return h("article", {className: "backend", "data-name": b.name, "aria-label": `backend ${b.name}, ${state}`},
    h("h3", {}, h("span", {className: down || ejected ? "dot down" : "dot"}), b.name, h("span", {className: `state ${down || ejected ? "bad" : "dim"}`}, state)),
    h("div", {className: "facts"}, `${b.model} on ${b.tp * b.pp} × ${b.card} · ${num(b.price_per_hour, 2)} $/h · serves ${Object.keys(b.models).join(", ")}`),
    b.down.map(d => h("div", {className: "facts bad"}, `${d.reason} since ${clock(d.since_s)}: ${d.why}`)), check(b), failures(b),
    bar(running, b.seqs_max, `${running} of ${b.seqs_max} in flight: ${b.load.prefilling} prefill, ${b.load.decoding} decode${b.others ? ` · ${b.others} from other routers` : ""}`),
    bar(b.engine?.kv_usage ?? 0, 1, `KV cache ${b.engine?.kv_usage == null ? "unknown" : num(100 * b.engine.kv_usage) + " %"}`),
    last_minute(b),
    h("button", {type: "button", "data-drain": b.name, "data-focus": `drain ${b.name}`, "data-action": drained ? "undrain" : "drain"}, drained ? "undrain" : "drain"));
}

const trouble = b => (b.down.length ? 2 : 0) + (b.failures.ejected ? 2 : 0) + (b.forecast === "off" || b.failures.in_a_row ? 1 : 0);
const words = b => [b.name, b.model, b.card, b.protocol, ...Object.keys(b.models), b.down.length ? "down" : "up", ...b.down.map(d => d.reason),
  b.failures.ejected ? "ejected" : ""].join(" ").toLowerCase();

function draw_backends(all) {
  const wanted = el("backend-filter").value.trim().toLowerCase();
  const found = all.filter(b => words(b).includes(wanted)).map((b, at) => [trouble(b), at, b]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  fill(el("backends"), found.slice(0, cards).map(([, , b]) => card(b)));
  const down = all.filter(b => b.down.length).length;
  const said = `${all.length} backend${all.length === 1 ? "" : "s"}, ${down} down` + (found.length < all.length ? `, ${found.length} found` : "");
  if (el("backend-count").textContent !== said) el("backend-count").textContent = said;
  el("more-backends").hidden = found.length <= cards;
}

el("backends").addEventListener("click", async event => {
  const {drain, action} = event.target.dataset;
  if (!drain || (action === "drain" && !confirm(`Send no more requests to ${drain}? Streams in flight run on.`))) return;
  try { await ask(`admin/backends/${encodeURIComponent(drain)}/${action}`, "POST"); refresh(); }
  catch (problem) { alert(problem.message); }
});
