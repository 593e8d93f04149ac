// A slider with a number beside it; both say the same value.

import { el, fresh } from "./dom.js";
import { tidy } from "./weights.js";

/**
 * Return `{node, set}`.
 *
 * @param {{label: string, value: number, least?: number, most?: number, step?: number, usual?: number, onchange: Function, quiet?: boolean}} options
 *   The number may lie outside of the slider's range; `usual` is where a double click goes.
 */
export function slider({ label, value, least = 0, most = 1.5, step = 0.01, usual = 1, onchange, quiet = false }) {
  const id = fresh("slider");
  const range = el("input", { id, type: "range", min: least, max: most, step, "aria-label": quiet ? label : null });
  const box = el("input.number", { type: "number", step: "any", "aria-label": `${label}, as a number` });
  const paint = (next) => {
    const [low, high] = [Number(range.min), Number(range.max)];
    const at = (Math.min(high, Math.max(low, next)) - low) / (high - low || 1);
    range.style.setProperty("--at", `${at * 100}%`);
  };
  const set = (next) => {
    if (next < Number(range.min)) range.min = String(Math.floor(next));
    if (next > Number(range.max)) range.max = String(Math.ceil(next));
    range.value = String(next);
    if (document.activeElement !== box) box.value = String(tidy(next));
    paint(next);
  };
  range.addEventListener("input", () => {
    box.value = String(tidy(range.value));
    paint(Number(range.value));
    onchange(tidy(range.value));
  });
  range.addEventListener("dblclick", () => {
    set(usual);
    onchange(usual);
  });
  box.addEventListener("input", () => {
    const next = Number(box.value);
    if (box.value.trim() === "" || !Number.isFinite(next)) return;
    set(next);
    onchange(next);
  });
  set(value);
  const node = el("div.slider", {}, quiet ? null : el("label", { for: id }, label), range, box);
  return { node, set };
}
