// A stack of adapters or models: added by click, drop or file, ordered by drag or keys, each with its weight.

import { get, upload } from "./api.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { onLibrary } from "./jobs.js";
import { iconButton } from "./parts.js";
import { pick } from "./picker.js";
import { fail } from "./toast.js";
import { stem } from "./words.js";
import { plain } from "./weights.js";
import { weighting } from "./weighting.js";

/** The kind of data that a dragged card carries. */
export const CARD = "application/x-loramerge-card";

/** Return an item for a name and what is known of it. */
export const itemOf = (name, { family = null, components = null, label = null, weight = 1 } = {}) => ({
  name, label: label ?? stem(name), family, components, weight: plain(weight), open: false,
});

/** Learn from the library which family an adapter has, and which components it changes; return whether it is known. */
async function learn(item) {
  const { cards } = await get("/api/library", { words: stem(item.name), limit: 50, sort: "name" });
  const { family, components } = cards.find((card) => card.reference === item.name) ?? {};
  Object.assign(item, { family: family ?? item.family, components: components ?? null });
  return Boolean(family);
}

/** Put a card's reference into a drag. */
export function dragCard(node, card) {
  node.draggable = true;
  node.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData(CARD, JSON.stringify({ reference: card.reference, name: card.name, family: card.family, components: card.components }));
    event.dataTransfer.effectAllowed = "copyMove";
  });
}

/**
 * Return `{node, add, draw}`.
 *
 * @param {object[]} items changed in place
 * @param {{about: object, refers?: string, empty?: any, onchange: (structure: boolean) => void, onlearn?: () => void, noun?: string, weighted?: boolean}} options
 */
export function stack(items, { about, refers = "adapters", empty = null, onchange, onlearn = () => {}, noun = "adapter", weighted = true, adding = true }) {
  const list = el("ol.stack-list");
  const said = el("p.away", { "aria-live": "polite" });
  const button = el("button.add", { onclick: async () => {
    const found = await pick({ refers, about });
    for (const one of found ?? []) add(one);
  } }, icon("add"), `Add ${/^[aeio]/.test(noun) ? "an" : "a"} ${noun}`);
  const node = el("div.stack", {}, list, adding ? button : null, said);
  let dragged = null;

  function add(found, at = items.length) {
    items.splice(at, 0, itemOf(found.reference ?? found, { family: found.family, components: found.components, label: found.name && stem(found.name), weight: found.weight ?? (refers === "models" ? 0.5 : 1) })); // models are averaged
    draw();
    onchange(true);
    teach(items[at]);
  }
  function teach(item) {
    if (!weighted || refers === "models" || item.components) return;
    learn(item).then((known) => {
      if (!known || !node.isConnected) return;
      draw(); // from here on there are weights of what it has
      onlearn();
    }, () => {});
  }
  function move(from, to) {
    if (to < 0 || to >= items.length) return;
    const [one] = items.splice(from, 1);
    items.splice(to, 0, one);
    said.textContent = `${one.label} is now ${to + 1} of ${items.length}`;
    draw();
    onchange(true);
    list.children[to]?.querySelector(".grip")?.focus();
  }
  function row(item, index) {
    const changed = () => onchange(false);
    const control = weighted ? weighting(item, about, changed) : null;
    const toggle = control && el("button.icon-only", {
      "aria-label": `Finer weights of ${item.label}`, "aria-expanded": String(item.open), title: "Per component or block",
      onclick: () => {
        item.open = !item.open;
        control.drawer.hidden = !item.open;
        toggle.setAttribute("aria-expanded", String(item.open));
        changed();
      },
    }, icon("curve"));
    const node = el("li.stack-item", { "data-name": item.name },
      el("div.stack-row", {},
        el("button.grip.icon-only", {
          draggable: true, title: "Drag, or press the up and down arrows",
          "aria-label": `Move ${item.label}, ${index + 1} of ${items.length}`,
          onkeydown: (event) => {
            const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
            if (!by) return;
            event.preventDefault();
            move(index, index + by);
          },
          ondragstart: (event) => {
            dragged = index;
            event.dataTransfer.effectAllowed = "move";
            event.dataTransfer.setData("text/plain", item.name);
            event.dataTransfer.setDragImage(node, 16, 16);
            node.classList.add("dragged");
          },
          ondragend: () => {
            dragged = null;
            node.classList.remove("dragged");
          },
        }, icon("grip")),
        el("span.stack-name", { title: item.name }, item.label),
        control?.row,
        el("span.stack-buttons", {}, toggle,
          iconButton("close", `Remove ${item.label}`, () => {
            items.splice(index, 1);
            draw();
            onchange(true);
            (list.children[Math.min(index, items.length - 1)]?.querySelector(".grip") ?? button).focus();
          }))),
      control?.drawer);
    return node;
  }
  function draw() {
    fill(list, items.map(row));
    list.hidden = !items.length;
    node.classList.toggle("is-empty", !items.length);
    if (!items.length && empty) node.prepend(empty);
    else empty?.remove();
  }
  const over = (event) => {
    const types = [...event.dataTransfer.types];
    if (dragged === null && !types.includes(CARD) && !types.includes("Files")) return;
    event.preventDefault();
    node.classList.add("over");
  };
  const placeOf = (event) => {
    const rows = [...list.children];
    const found = rows.findIndex((one) => event.clientY < one.getBoundingClientRect().top + one.offsetHeight / 2);
    return found < 0 ? rows.length : found;
  };
  node.addEventListener("dragover", over);
  node.addEventListener("dragleave", (event) => node.contains(event.relatedTarget) || node.classList.remove("over"));
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    node.classList.remove("over");
    const at = placeOf(event);
    if (dragged !== null) return move(dragged, at > dragged ? at - 1 : at);
    const card = event.dataTransfer.getData(CARD);
    if (card) return add(JSON.parse(card), at);
    for (const file of event.dataTransfer.files) {
      try {
        add(await upload(file), at);
      } catch (error) {
        fail(error);
      }
    }
    return undefined;
  });
  draw();
  items.forEach(teach);
  const end = onLibrary(() => (node.isConnected ? items.forEach(teach) : end())); // headers are read after the first answer
  return { node, add, draw };
}
