// Parts that several views are made of.

import { el } from "./dom.js";
import { icon } from "./icons.js";

/** Return a button that shows only an icon; `spec` may add classes. */
export const iconButton = (symbol, name, act, properties = {}, spec = "") =>
  el(`button.icon-only${spec}`, { "aria-label": name, onclick: act, ...properties }, icon(symbol));

/** Return what stands where nothing is yet. */
export const empty = (title, text, ...more) => el("div.empty-state", {}, el("h2", {}, title), el("p", {}, text), more);

/** Return a panel, the name of which screen readers say. */
export const panel = (name, ...content) => el("section.panel", { "aria-label": name }, content);

/** Return the two columns of a view; the second may be missing. */
export const columns = (main, aside, spec = "") => el(`div.columns${spec}`, {}, el("div.column.main", {}, main), aside && el("div.column.aside", {}, aside));

/** Return facts, [name, value]; those without a value are left out. */
export const facts = (all) => el("dl.facts", {}, all.filter(([, value]) => value || value === 0)
  .map(([name, value]) => [el("dt", {}, name), el("dd.breaks", {}, value)]));

/** Return choices, value → text, of which one is taken; `choose(value)` is called with the next. */
export function segments(label, choices, now, choose) {
  const node = el("div.segments", { role: "radiogroup", "aria-label": label }, Object.entries(choices).map(([value, text]) =>
    el("button", { role: "radio", "aria-checked": String(value === now), onclick: (event) => {
      for (const one of node.children) one.setAttribute("aria-checked", String(one === event.currentTarget));
      choose(value);
    } }, text)));
  return node;
}

/** Return a table of rows of cells, which may be texts. */
export function table(heads, rows, spec = "table") {
  const cell = (one) => (one instanceof HTMLTableCellElement ? one : el("td", {}, one));
  return el("div.scroll", {}, el(spec, {},
    el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}

/** Call `follow(x, y)` while the pointer is held down on a picture, each from 0 to 1; `begin` before the first. */
export function dragged(picture, follow, begin = () => {}) {
  const at = (event) => {
    const box = picture.getBoundingClientRect();
    follow((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    begin();
    at(event);
  });
  picture.addEventListener("pointermove", (event) => picture.hasPointerCapture(event.pointerId) && at(event));
}
