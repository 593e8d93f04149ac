// Line charts as SVG: few lines, quiet axes, numbers that can be read.

import { el, pathOf, svg } from "./dom.js";
import { number } from "./words.js";

const HIGH = 256;
const PAD = { left: 52, right: 16, top: 12, bottom: 34 };

/** Return about `count` round numbers between two. */
function ticks(low, high, count = 5) {
  const span = high - low || 1;
  const raw = span / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * unit).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

/**
 * Return `{node, picture, x, y}`; `x` and `y` turn data into places in the picture.
 *
 * @param {{lines: {points: number[][], kind?: string, name?: string, dots?: boolean}[], xName: string, yName: string, xText?: Function, yText?: Function, label: string, zero?: boolean}} options
 */
export function chart({ lines, xName, yName, xText = number, yText = number, label, zero = true }) {
  const wide = innerWidth < 560 ? 340 : 640; // a picture is scaled to its place, with the text in it
  const all = lines.flatMap((line) => line.points);
  const xs = all.map((point) => point[0]);
  const ys = all.map((point) => point[1]);
  const [x0, x1] = [Math.min(...xs, zero ? 0 : Infinity), Math.max(...xs)];
  const [y0, y1] = [Math.min(...ys, zero ? 0 : Infinity), Math.max(...ys) * 1.02];
  const x = (value) => PAD.left + ((value - x0) * (wide - PAD.left - PAD.right)) / (x1 - x0 || 1);
  const y = (value) => HIGH - PAD.bottom - ((value - y0) * (HIGH - PAD.top - PAD.bottom)) / (y1 - y0 || 1);
  const back = (place) => x0 + ((place - PAD.left) * (x1 - x0 || 1)) / (wide - PAD.left - PAD.right);
  const picture = svg("svg.chart", { viewBox: `0 0 ${wide} ${HIGH}`, role: "img", "aria-label": label },
    ticks(y0, y1, 4).map((value) => [
      svg("line.grid", { x1: PAD.left, x2: wide - PAD.right, y1: y(value), y2: y(value) }),
      svg("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, yText(value)),
    ]),
    ticks(x0, x1, wide / 128).map((value) => svg("text", { x: x(value), y: HIGH - PAD.bottom + 18, "text-anchor": "middle" }, xText(value))),
    lines.map((line) => [
      svg(`path.line.${line.kind ?? "main"}`, { d: pathOf(line.points.map(([px, py]) => [x(px), y(py)])) }),
      line.dots ? line.points.map(([px, py]) => svg(`circle.dot.${line.kind ?? "main"}`, { cx: x(px), cy: y(py), r: 3.5 })) : null,
    ]));
  const legend = lines.some((line) => line.name)
    ? el("ul.legend", {}, lines.map((line) => el("li", {}, el(`span.key.${line.kind ?? "main"}`, { "aria-hidden": "true" }), line.name)))
    : null;
  const node = el("figure.chart-box", {}, el("figcaption.small.soft", {}, `${yName} against ${xName.toLowerCase()}`), picture, legend);
  return { node, picture, x, y, back, top: PAD.top, bottom: HIGH - PAD.bottom, wide };
}

/** Return points smoothed by a running mean, so that the trend of a noisy loss is seen. */
export function smoothed(points, share = 0.05) {
  const weight = 1 / Math.max(1, Math.round(points.length * share));
  let mean = points[0]?.[1] ?? 0;
  return points.map(([at, value]) => [at, (mean += weight * (value - mean))]);
}
