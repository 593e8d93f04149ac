// Two pictures over each other, with a line between them that moves.

import { el } from "./dom.js";

/** Return `{node, range, b, to}` and more: `showA` and `showB` set a picture and resolve to its width and height. */
export function wipe() {
  const left = el("img.wipe-left", { alt: "", draggable: false });
  const right = el("img.wipe-right", { alt: "", draggable: false });
  const line = el("div.wipe-line");
  const range = el("input.wipe-range", { type: "range", min: 0, max: 100, value: 0, "aria-label": "How much of picture A is shown" });
  const names = [el("span.wipe-name.a"), el("span.wipe-name.b")];
  const node = el("div.wipe", {}, right, left, line, names, range);
  const place = () => {
    node.style.setProperty("--wipe", `${range.value}%`);
    node.classList.toggle("split", Number(range.value) > 0 && Boolean(left.src));
  };
  range.addEventListener("input", place);
  place();
  const shows = (image, name, letter) => async (address, text) => {
    const next = new Image();
    next.src = address;
    name.textContent = text;
    await next.decode();
    image.src = address;
    image.alt = `${letter}: ${text}`;
    place();
    return [next.naturalWidth, next.naturalHeight];
  };
  return {
    node,
    range,
    showA: shows(left, names[0], "A"),
    showB: shows(right, names[1], "B"),
    get b() {
      return right.getAttribute("src");
    },
    to: (share) => {
      range.value = String(share);
      place();
    },
  };
}
