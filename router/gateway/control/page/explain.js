// One request: /explain in a dialog. When what happened, headroom by backend, and why the losers lost.
"use strict";

function timeline(request) {
  return h("ol", {className: "timeline", "aria-label": "Timeline, milliseconds since the arrival"}, request.timeline.map(each =>
    h("li", {}, h("b", {}, each.event), each.event === "held" ? `for ${num(each.for_ms, 1)} ms` : `${num(each.at_ms, 1)} ms`)));
}

const bounds = slo => ["ttft", "tpot", "e2e"].filter(name => slo[`${name}_ms`] != null).map(name => `${name.toUpperCase()} ${slo[`${name}_ms`]} ms`).join(", ") || "no bound";

function candidates(request) {
  if (!request.candidates) return h("p", {className: "dim"}, "The forecasts of this decision are no longer in memory.");
  const least = each => Math.min(...Object.values(each.headroom_ms), Infinity);
  const sorted = [...request.candidates].sort((a, b) => b.chosen - a.chosen || least(b) - least(a));
  const left = request.compared - sorted.length;
  return h("div", {className: "scroll"}, left > 0 && h("p", {className: "dim"}, `The nearest of ${request.compared} backends.`), h("table", {}, h("thead", {}, h("tr", {}, ["backend", "TTFT ms", "TPOT ms", "E2E ms", "headroom ms", "why"].map((name, at) =>
    h("th", {scope: "col", className: at > 0 && at < 5 ? "n" : ""}, name)))),
  h("tbody", {}, sorted.map(each => h("tr", {}, h("th", {scope: "row"}, each.backend, each.chosen ? " ✓" : ""),
    ["ttft", "tpot", "e2e"].map(name => h("td", {className: "n"}, `${num(each[`${name}_ms`], 1)} (${num(each[`${name}_tail_ms`], 1)})`)),
    h("td", {className: `n ${least(each) < 0 ? "bad" : ""}`}, Object.entries(each.headroom_ms).map(([name, ms]) => `${name.toUpperCase()} ${num(ms, 1)}`).join(", ") || "–"),
    h("td", {className: "wrap"}, each.why))))));
}

const servedBy = request => request.served_model === request.model ? "" : ` served by ${request.served_model}${request.fallback_why ? ` (${request.fallback_why})` : ""}`;

function explanation(request) {
  const actual = request.actual, predicted = request.predicted;
  return [
    h("p", {}, `${request.model}${servedBy(request)}, tenant ${request.tenant || "–"}, class ${request.slo.class}: ${bounds(request.slo)} at quantile ${request.slo.quantile}. Arrived ${day(request.arrived_at_s)}.`),
    h("p", {}, "Outcome: ", h("b", {}, request.outcome), request.reason ? ` (${request.reason})` : "", `, status ${request.status}, `,
      request.slo.met == null ? "not judged" : request.slo.met ? "SLO met" : "SLO violated", `; ${request.prompt_tokens} prompt tokens, ${request.output_tokens} output tokens.`),
    h("h3", {}, "Timeline"), timeline(request),
    h("h3", {}, "Measured (forecast)"),
    h("p", {}, "TTFT from the send ", pair(actual.ttft_from_send_ms, predicted.ttft_ms, 0), " ms, TPOT ", pair(actual.tpot_ms, predicted.tpot_ms, 1), " ms, E2E ", pair(actual.e2e_ms, predicted.e2e_ms, 0), " ms; longest gap ", num(actual.gap_max_ms, 0), " ms"),
    h("h3", {}, "Decisions"), h("ol", {}, request.decisions.map(each => h("li", {}, each.send_to ? `attempt ${each.attempt}: sent to ${each.send_to}, ${each.why}` : `refused (${each.refuse}): ${each.why}`))),
    h("h3", {}, "Forecast by backend when it was decided: mean (at the SLO's quantile)"), candidates(request),
  ];
}

let opener = "";  // what had the focus: it may have been drawn anew when the dialog is closed

async function explain(id) {
  opener = document.activeElement.dataset.focus ?? "";
  el("explain-title").textContent = `Request ${id}`;
  el("explain-body").replaceChildren("loading ...");
  if (!el("explain").open) el("explain").showModal();
  try { el("explain-body").replaceChildren(...h("div", {}, explanation(await ask(`explain/${encodeURIComponent(id)}`))).childNodes); }
  catch (problem) { el("explain-body").replaceChildren(h("p", {className: "bad"}, problem.message)); }
}

el("explain").addEventListener("close", () => { if (opener) (focusable(document, opener) ?? el("requests-title")).focus(); });
el("request-id").addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.value.trim()) explain(event.target.value.trim());
});
