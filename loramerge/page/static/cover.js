// A quiet drawing for an adapter without a picture: lines that follow from its name, the same each time.

import { svg } from "./dom.js";

function numbers(text) {
  let state = 2166136261;
  for (const letter of text) state = Math.imul(state ^ letter.codePointAt(0), 16777619);
  return () => {
    state = Math.imul(state ^ (state >>> 15), 2246822507);
    state = Math.imul(state ^ (state >>> 13), 3266489909);
    return ((state ^= state >>> 16) >>> 0) / 4294967296;
  };
}

/** Return the drawing for a name. */
export function drawnCover(name) {
  const next = numbers(name);
  const [from, to, bend, lift] = [next(), next(), next(), next()];
  const lines = Array.from({ length: 9 }, (_, index) => {
    const at = index * 11;
    const [y0, y1] = [20 + from * 70 + at - 40, 20 + to * 70 + at - 40];
    const [c0, c1] = [y0 + (bend - 0.5) * 150, y1 + (lift - 0.5) * 150];
    return svg("path", { d: `M-4 ${y0.toFixed(1)}C60 ${c0.toFixed(1)} 140 ${c1.toFixed(1)} 204 ${y1.toFixed(1)}`, "stroke-opacity": (0.2 + 0.08 * index).toFixed(2) });
  });
  return svg("svg.cover.drawn", { viewBox: "0 0 200 136", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true", focusable: "false" }, lines);
}
