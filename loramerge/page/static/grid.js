// A grid of pictures: the weights of two adapters against each other. A click takes the weights.

import { live } from "./api.js";
import { dialog } from "./dialog.js";
import { el, fill } from "./dom.js";
import { segments } from "./parts.js";
import { asking, pictureOf } from "./preview.js";
import { failure } from "./toast.js";
import { tidy } from "./weights.js";

const STEPS = { 3: [0, 0.5, 1], 4: [0, 0.4, 0.8, 1.2], 5: [0, 0.3, 0.6, 0.9, 1.2] };

/**
 * Open the grid.
 *
 * @param {{items: object[], body: (levels: number[]) => object, settings: object, take: (levels: number[]) => void}} options
 *   `body` returns what a preview of these weights asks for; the first two adapters vary
 */
export function openGrid({ items, body, settings, take }) {
  const [down, across] = items;
  const place = el("div.grid-place");
  let turn = 0;
  async function draw(count) {
    const mine = ++turn;
    const levels = STEPS[count];
    const rows = across ? levels : [null];
    const cells = rows.map((second) => levels.map((first) => ({ levels: second === null ? [first] : [first, second], node: null })));
    const cell = (one) => {
      const text = one.levels.map((value, index) => `${items[index].label} ${value}`).join(", ");
      one.node = el("button.grid-cell", { title: `Take ${text}`, "aria-label": `Take ${text}`, onclick: () => {
        take(one.levels.map(tidy));
        opened.close();
      } });
      return el("td", {}, one.node);
    };
    fill(place, el("div.scroll", {}, el("table.grid-table", {},
      el("caption.soft.small", {}, across ? `${down.label} grows to the right, ${across.label} downwards. Click a picture to take its weights.` : `${down.label} grows to the right. Click a picture to take its weight.`),
      el("thead", {}, el("tr", {}, el("td"), levels.map((value) => el("th", { scope: "col" }, value)))),
      el("tbody", {}, cells.map((row) => el("tr", {}, el("th", { scope: "row" }, row[0].levels[1] ?? ""), row.map(cell)))))));
    for (const one of cells.flat()) {
      if (mine !== turn || !place.isConnected) return;
      try {
        const answer = await live("preview", { verb: "preview", ...asking(settings, body(one.levels)) }, "preview-grid");
        fill(one.node, el("img", { src: pictureOf(answer), alt: "" }));
      } catch (error) {
        fill(place, failure(error));
        return;
      }
    }
  }
  const sizes = segments("Size of the grid", Object.fromEntries(Object.keys(STEPS).map((count) => [count, across ? `${count} × ${count}` : count])), "4", draw);
  const opened = dialog("A grid of weights", [sizes, place], { wide: true, onclose: () => (turn += 1) });
  draw("4");
}
