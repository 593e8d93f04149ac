// A wall of cards of which only those in sight exist, so that 5,000 are as smooth as 50.

import { el } from "./dom.js";

const CARD = { least: 176, high: 252, gap: 16 };
const MARGIN = 2; // rows above and below the window that exist too
const PAGE = 60;
const PAGES_KEPT = 20;

/**
 * Return `{node, load, stop}`.
 *
 * @param {{fetchPage: (offset: number, limit: number) => Promise<{total: number, cards: object[]}>, card: (card: object, index: number, total: number) => HTMLElement, ontotal: Function, onerror: Function}} options
 */
export function wall({ fetchPage, card, ontotal, onerror }) {
  const node = el("div.wall", { role: "list", "aria-label": "Adapters" });
  const pages = new Map();
  const shown = new Map();
  let total = 0;
  let turn = 0;
  let columns = 1;
  let ticking = false;

  function measure() {
    const wide = node.clientWidth || 1;
    columns = Math.max(wide < 420 ? 2 : 1, Math.floor((wide + CARD.gap) / (CARD.least + CARD.gap)));
    node.style.height = `${Math.ceil(total / columns) * (CARD.high + CARD.gap)}px`;
    return (wide - CARD.gap * (columns - 1)) / columns;
  }
  async function page(number) {
    if (pages.has(number)) return;
    const mine = turn;
    pages.set(number, null);
    try {
      const answer = await fetchPage(number * PAGE, PAGE);
      if (mine !== turn) return;
      pages.set(number, answer.cards);
      while (pages.size > PAGES_KEPT) pages.delete([...pages.keys()].sort((a, b) => Math.abs(b - number) - Math.abs(a - number))[0]);
      if (answer.total !== total) {
        total = answer.total;
        ontotal(answer);
      } else if (number === 0) ontotal(answer);
      draw();
    } catch (error) {
      if (mine === turn) {
        pages.delete(number);
        onerror(error);
      }
    }
  }
  function draw() {
    const wide = measure();
    const box = node.getBoundingClientRect();
    const row = CARD.high + CARD.gap;
    const first = Math.max(0, Math.floor(-box.top / row) - MARGIN) * columns;
    const last = Math.min(total, (Math.ceil((innerHeight - box.top) / row) + MARGIN) * columns);
    for (const [index, one] of shown) {
      if (index < first || index >= last) {
        if (one.contains(document.activeElement)) continue;
        one.remove();
        shown.delete(index);
      }
    }
    for (let index = first; index < last; index += 1) {
      const cards = pages.get(Math.floor(index / PAGE));
      if (cards === undefined) page(Math.floor(index / PAGE));
      const found = cards?.[index % PAGE];
      if (!found) continue;
      let one = shown.get(index);
      if (!one) {
        one = card(found, index, total);
        one.setAttribute("role", "listitem");
        one.setAttribute("aria-setsize", total);
        one.setAttribute("aria-posinset", index + 1);
        shown.set(index, one);
        const after = [...shown.keys()].filter((key) => key > index && shown.get(key).parentNode).sort((a, b) => a - b)[0];
        node.insertBefore(one, after === undefined ? null : shown.get(after));
      }
      one.style.width = `${wide}px`;
      one.style.transform = `translate(${(index % columns) * (wide + CARD.gap)}px, ${Math.floor(index / columns) * row}px)`;
    }
  }
  const soon = () => {
    if (ticking) return;
    ticking = true;
    requestAnimationFrame(() => {
      ticking = false;
      if (node.isConnected) draw();
    });
  };
  const watch = new ResizeObserver(soon);
  watch.observe(node);
  addEventListener("scroll", soon, { passive: true });
  function load() {
    turn += 1;
    pages.clear();
    page(0).then(() => {
      for (const one of shown.values()) one.remove();
      shown.clear();
      draw();
    });
  }
  return {
    node,
    load,
    stop() {
      turn += 1;
      watch.disconnect();
      removeEventListener("scroll", soon);
    },
  };
}
