// The page: reads /admin/fleet every second and the history every fifteen, and shows what became of the config.
"use strict";
const FLEET_MS = 1000, HISTORY_MS = 15000;
let fleet = null, filter = "all", timer = 0;
let entry = "";  // the request at which the Tab key enters the list: the one that had the focus last, or the first

function tiles(f) {
  const met = f.last.requests ? f.last.slo_met / f.last.requests : 1;
  const tokens = f.backends.reduce((sum, b) => sum + b.last.output_tokens_per_s, 0);
  const tile = (name, value, tone = "") => h("div", {className: "tile"}, h("dt", {}, name), h("dd", {className: tone}, value));
  return [tile("in flight", f.in_flight), tile("held", f.held, f.held ? "warn" : ""), tile("requests, last min", f.last.requests),
    tile("SLO met", share(f.last.slo_met, f.last.requests), met >= .99 ? "good" : met >= .9 ? "warn" : "bad"),
    tile("refused", f.last.refused, f.last.refused ? "bad" : ""), tile("client errors", f.client_errors), tile("tokens/s", num(tokens))];
}

function about(f) {
  const peers = Object.keys(f.peers).length, push = f.push ? ` · ${f.push.peers.length} push${f.push.peers.length === 1 ? "es" : ""} changes` : "";
  return [`${f.router} · config `, h("code", {}, f.version), " · routing ", h("code", {}, f.policy.routing.name), ` · ${peers} peer${peers === 1 ? "" : "s"}${push} · `,
    f.draining ? h("span", {className: "warn"}, "draining") : f.ready ? h("span", {className: "good"}, "ready") : h("span", {className: "bad"}, "not ready")];
}

/** A canary while its trial runs, and a shadow. */
function trials(f) {
  const c = f.trial, s = f.shadow, found = [];
  const arm = name => `${share(c.arms[name].met, c.arms[name].requests)} of ${c.arms[name].requests}`;
  const percent = part => num(100 * part, 1) + " %";
  const drop = c?.drop ? `, a drop of ${percent(c.drop.mean)} (95 % interval ${percent(c.drop.low)} to ${percent(c.drop.high)})` : "";
  if (c) found.push(`canary on trial, SLO met: ${arm("canary")}, serving ${arm("serving")}${drop}`);
  if (s) found.push(`shadow agrees in ${s.agreement == null ? "–" : percent(s.agreement)} of ${s.decisions} decisions, forecast gain: TTFT ${num(s.gain_ms.ttft)} ms, E2E ${num(s.gain_ms.e2e)} ms`);
  return found.join(" · ");
}

/** What became of the config: read or validated now, refused with file, line and cause, or rolled back. */
function banners(f) {
  const now = f.config.reloading, last = f.config.last, found = [];
  const banner = (tone, ...parts) => found.push(h("div", {className: `banner ${tone}`}, ...parts));
  if (now) banner("warn-banner", h("b", {}, "Config: "), `${now.doing} (${now.origin}, since ${clock(now.since_s)}) `,
    h("progress", {max: 1, value: now.share, "aria-label": "validation"}), ` ${num(10 * now.share) * 10} %; the running one goes on serving`);
  const back = /roll/.test(last.origin);
  if (!last.ok) banner("", h("b", {}, `${back ? "Rollback impossible" : "Config refused"} at ${clock(last.at_s)} (${last.origin}); version ${last.version} goes on serving`), h("pre", {}, [last.why, last.error].filter(Boolean).join("\n")));
  else if (back || last.why) banner("warn-banner", h("b", {}, `Version ${last.version} serves since ${clock(last.at_s)}: ${last.origin}`), last.why && h("pre", {}, last.why));
  if (f.failing_open.length) banner("", `No backend of ${f.failing_open.join(", ")} is up: those that are down are tried.`);
  for (const [channel, why] of Object.entries(f.push?.faults ?? {})) banner("warn-banner", `Changes of peers do not come over ${channel} (${why}): their load is known by their views.`);
  if (f.state_fault) banner("warn-banner", `The shared state does not answer (${f.state_fault}): this router routes by its own view.`);
  return found;
}

function request(r) {
  const tone = r.outcome === "client_error" || r.outcome === "left" ? "dim" : r.outcome !== "served" ? "bad" : r.slo_met ? "good" : "warn";
  const outcome = r.outcome === "served" ? (r.slo_met ? "SLO met" : "SLO violated") : r.reason ?? (r.outcome === "left" ? "client left" : r.outcome);
  return h("tr", {}, h("td", {}, h("button", {type: "button", className: "link", "data-request": r.id, "data-focus": r.id, tabIndex: r.id === entry ? 0 : -1, "aria-label": `explain request ${r.request_id}`}, r.request_id.length > 18 ? `…${r.request_id.slice(-14)}` : r.request_id)),
    h("td", {}, ago(r.age_s)), h("td", {}, r.backend ?? "–"), h("td", {}, r.slo_class), h("td", {className: tone}, outcome),
    h("td", {className: "n"}, `${r.prompt_tokens} → ${r.output_tokens_estimated ? "~" : ""}${r.output_tokens}`), h("td", {className: "n"}, num(r.held_ms)),
    h("td", {className: "n"}, pair(r.ttft_ms, r.ttft_predicted_ms, 0)), h("td", {className: "n"}, pair(r.tpot_ms, r.tpot_predicted_ms, 1)),
    h("td", {className: "n"}, num(r.e2e_ms)), h("td", {className: "why", title: r.why}, r.why));
}

function draw_requests(f) {
  const rows = filter === "failed" ? f.failed : filter === "violated" ? f.violated : f.recent;
  const none = {all: "no requests yet", violated: "none of the last requests violated its SLO", failed: "no request has failed or was refused"}[filter];
  if (!rows.some(r => r.id === entry)) entry = rows[0]?.id ?? "";
  fill(el("requests"), rows.length ? rows.map(request) : h("tr", {}, h("td", {className: "dim", colspan: 11}, none)));
}

function draw(f) {
  fleet = f;
  fill(el("about"), about(f));
  fill(el("trials"), trials(f));
  fill(el("banners"), banners(f));
  fill(el("tiles"), tiles(f));
  draw_backends(f.backends);
  draw_requests(f);
}

/** Read and draw; a router that does not answer stands in a banner, beside what was read last. */
async function refresh() {
  clearTimeout(timer);
  try {
    draw(await ask("admin/fleet"));
    timer = setTimeout(refresh, FLEET_MS);
  } catch (problem) {
    if (problem instanceof NeedsKey) return login(problem.message);
    const why = problem instanceof TypeError ? "The router does not answer" : problem.message;
    fill(el("banners"), h("div", {className: "banner"}, `${why}; trying again every second. What is below is from before.`));
    timer = setTimeout(refresh, FLEET_MS);
  }
}

async function refresh_history() {
  try { await history_now(); } catch (problem) { if (problem instanceof NeedsKey) return; }
  setTimeout(refresh_history, HISTORY_MS);
}

function login(why) {
  if (why) el("login-why").textContent = why;
  if (!el("login").open) el("login").showModal();
}

el("login-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("headroom-admin-key", el("login-key").value);
  el("login").close("given");
  refresh();
  refresh_history();
});
el("login").addEventListener("close", () => {
  if (el("login").returnValue === "given") return;
  const again = h("button", {type: "button"}, "enter the key");
  again.addEventListener("click", () => login(""));
  fill(el("banners"), h("div", {className: "banner"}, h("b", {}, "Nothing is shown without the admin key. "), again));
  again.focus();
});
el("filters").addEventListener("click", event => {
  if (!event.target.dataset.filter) return;
  pressed(el("filters"), event.target);
  filter = event.target.dataset.filter;
  if (fleet) draw_requests(fleet);
});
el("requests").addEventListener("focusin", event => {
  if (!event.target.dataset.request) return;
  entry = event.target.dataset.request;
  for (const each of el("requests").querySelectorAll("[data-request]")) each.tabIndex = each === event.target ? 0 : -1;
});
el("requests").addEventListener("keydown", event => {
  const all = [...el("requests").querySelectorAll("[data-request]")], at = all.indexOf(event.target);
  const to = all[{ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1}[event.key]];
  if (at < 0 || !to) return;
  event.preventDefault();
  to.focus();
});
el("requests").addEventListener("click", event => { if (event.target.dataset.request) explain(event.target.dataset.request); });
el("backend-filter").addEventListener("input", () => { cards = CARDS; if (fleet) draw_backends(fleet.backends); });
el("more-backends").addEventListener("click", () => { cards += 4 * CARDS; if (fleet) draw_backends(fleet.backends); });
refresh();
refresh_history();
