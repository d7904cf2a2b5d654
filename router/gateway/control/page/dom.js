// Elements, numbers and answers of the router: what the other scripts share. Text is never parsed as HTML.
"use strict";
const el = id => document.getElementById(id);

/** An element. Properties with a dash, "role", "for" and "scope" are attributes; children may be nested and empty. */
function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (name.includes("-") || ["role", "for", "scope", "colspan"].includes(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(4).filter(child => child != null && child !== false && child !== ""));
  return made;
}

const num = (value, digits = 0) => value == null ? "–" : Number(value).toFixed(digits);
const share = (part, whole) => whole ? (100 * part / whole).toFixed(part === whole ? 0 : 1) + " %" : "–";
const H24 = {hourCycle: "h23"};  // as logs have it
const clock = seconds => new Date(1e3 * seconds).toLocaleTimeString(undefined, H24);
const minute = seconds => new Date(1e3 * seconds).toLocaleTimeString(undefined, {...H24, hour: "2-digit", minute: "2-digit"});
const day = seconds => new Date(1e3 * seconds).toLocaleString(undefined, H24);
const ago = seconds => seconds < 60 ? `${num(seconds)} s` : seconds < 3600 ? `${num(seconds / 60)} min` : `${num(seconds / 3600, 1)} h`;

/** The colour of a forecast beside what was measured. */
function off(actual, predicted) {
  if (actual == null || !predicted) return "dim";
  const ratio = actual / predicted;
  return ratio > 2 || ratio < .5 ? "bad" : ratio > 1.3 || ratio < .77 ? "warn" : "good";
}
const pair = (actual, predicted, digits) =>
  [num(actual, digits), " ", h("span", {className: off(actual, predicted)}, `(${num(predicted, digits)})`)];

class NeedsKey extends Error {}

/** The JSON at a path. Throws NeedsKey, or an Error with what the router says. */
async function ask(path, method = "GET") {
  const key = sessionStorage.getItem("headroom-admin-key");
  const answer = await fetch(path, {method, headers: key ? {authorization: `Bearer ${key}`} : {}});
  if (answer.status === 401) throw new NeedsKey(key ? "The router refused this key." : "");
  const body = await answer.json().catch(() => null);  // what a proxy answers need not be JSON
  if (!answer.ok || !body) throw new Error(body?.error?.message ?? body?.error ?? `${path}: status ${answer.status}`);
  return body;
}

const PRESS_MS = 1000;
let pressedAt = -Infinity;
addEventListener("pointerdown", () => { pressedAt = performance.now(); });
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { pressedAt = -Infinity; });

const focusable = (parent, key) => parent.querySelector(`[data-focus="${CSS.escape(key)}"]`);

/** Put these in place of the children of *parent*, unless they read the same: focus and selection stay. Not between the
 * press and the release of a pointer, which would then click nothing. Focus on what is no longer there goes to the title
 * of the section.
 */
function fill(parent, ...children) {
  if (performance.now() - pressedAt < PRESS_MS) return;
  const made = h("div", {}, ...children);
  if (made.innerHTML !== parent.innerHTML) {
    const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    parent.replaceChildren(...made.childNodes);
    if (focused) (focusable(parent, focused) ?? parent.closest("section")?.querySelector("h2"))?.focus();
  }
}

const pressed = (group, button) => {
  for (const each of group.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
};
