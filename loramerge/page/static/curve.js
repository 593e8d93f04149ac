// A curve that is drawn with the pointer, or set point by point with the arrow keys.

import { el, fill, pathOf, svg } from "./dom.js";
import { dragged } from "./parts.js";
import { tidy } from "./weights.js";

const HIGH = 150;
const EDGE = 12;
const SNAP = 0.05;

/**
 * Return a picture with one handle for each value.
 *
 * @param {{values: number[], names: string[], least?: number, most?: number, onchange: (values: number[]) => void, label: string}} options
 */
export function curve({ values, names, least = 0, most = 1.5, onchange, label }) {
  const wide = innerWidth < 560 ? 320 : 560; // about as wide as it is shown, so that its text keeps its size
  const now = [...values];
  const nameOf = (index) => names[index] || `Block ${index + 1}`;
  const low = Math.min(least, ...now);
  const high = Math.max(most, ...now);
  const x = (index) => EDGE + (index * (wide - 2 * EDGE)) / Math.max(1, now.length - 1);
  const y = (value) => HIGH - EDGE - ((value - low) * (HIGH - 2 * EDGE)) / (high - low || 1);
  const line = svg("path.curve-line");
  const area = svg("path.curve-area");
  const grid = [0, 1].filter((one) => one >= low && one <= high).map((one) => [
    svg("line.grid", { x1: EDGE, x2: wide - EDGE, y1: y(one), y2: y(one) }),
    svg("text", { x: wide - 2, y: y(one) - 3, "text-anchor": "end" }, String(one)),
  ]);
  const dots = now.map((_, index) => svg("circle.curve-dot", {
    r: now.length > 30 ? 3 : 5, tabindex: "0", role: "slider", "aria-label": nameOf(index),
    "aria-valuemin": low, "aria-valuemax": high, onkeydown: (event) => step(event, index),
  }));
  const picture = svg("svg.curve", { viewBox: `0 0 ${wide} ${HIGH}`, role: "group", "aria-label": label, preserveAspectRatio: "none" },
    grid, area, line, dots);
  const shown = el("p.soft.small.curve-said", { "aria-live": "polite" }, "Draw with the pointer, or choose a point and press the arrow keys.");

  function draw() {
    const path = pathOf(now.map((value, index) => [x(index), y(value)]));
    line.setAttribute("d", path);
    area.setAttribute("d", `${path}L${x(now.length - 1)} ${y(low)}L${x(0)} ${y(low)}Z`);
    dots.forEach((dot, index) => {
      dot.setAttribute("cx", x(index));
      dot.setAttribute("cy", y(now[index]));
      dot.setAttribute("aria-valuenow", tidy(now[index]));
    });
  }
  function put(index, value) {
    now[index] = tidy(Math.min(high, Math.max(low, value)));
    fill(shown, `${nameOf(index)}: ${now[index]}`);
    draw();
    onchange([...now]);
  }
  function step(event, index) {
    const by = { ArrowUp: SNAP, ArrowDown: -SNAP, PageUp: 0.25, PageDown: -0.25 }[event.key];
    const to = { Home: low, End: high }[event.key];
    const aside = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by !== undefined || to !== undefined) put(index, to ?? now[index] + by);
    else if (aside) dots[Math.max(0, Math.min(dots.length - 1, index + aside))].focus();
    else return;
    event.preventDefault();
  }
  let before = null;
  function drawn(across, down) {
    const index = Math.max(0, Math.min(now.length - 1, Math.round(((across * wide - EDGE) / (wide - 2 * EDGE)) * (now.length - 1))));
    const value = Math.round((low + ((HIGH - EDGE - down * HIGH) * (high - low)) / (HIGH - 2 * EDGE)) / SNAP) * SNAP;
    if (before && Math.abs(index - before[0]) > 1) {
      const [from, at] = before;
      const way = Math.sign(index - from);
      for (let one = from + way; one !== index; one += way) {
        now[one] = tidy(Math.min(high, Math.max(low, at + ((value - at) * (one - from)) / (index - from))));
      }
    }
    before = [index, value];
    put(index, value);
  }
  dragged(picture, drawn, () => (before = null));
  draw();
  const ends = el("div.curve-names.small.soft", { "aria-hidden": "true" },
    el("span", {}, names[0]), el("span", {}, names[Math.floor(names.length / 2)]), el("span", {}, names.at(-1)));
  return el("div.curve-box", {}, picture, ends, shown);
}
