// A recipe's graph, layered from left to right.

import { svg, el } from "./dom.js";

const BOX = { wide: 152, high: 44, across: 56, down: 16 };

/** Return the layer of every node: one more than the highest it needs. */
function layers(nodes, edges) {
  const found = new Map(nodes.map((node) => [node.id, 0]));
  for (let turn = 0; turn < nodes.length; turn += 1) {
    let moved = false;
    for (const [from, to] of edges) {
      if (found.has(from) && found.has(to) && found.get(to) <= found.get(from)) {
        found.set(to, found.get(from) + 1);
        moved = true;
      }
    }
    if (!moved) break;
  }
  return found;
}

function placed(nodes, edges) {
  const layer = layers(nodes, edges);
  const columns = [];
  for (const node of nodes) (columns[layer.get(node.id)] ??= []).push(node);
  const places = new Map();
  const tall = Math.max(...columns.map((column) => column?.length ?? 0));
  columns.forEach((column, index) => {
    const middle = (node) => {
      const before = edges.filter((edge) => edge[1] === node.id).map((edge) => places.get(edge[0])?.y ?? 0);
      return before.length ? before.reduce((sum, one) => sum + one, 0) / before.length : 0;
    };
    const sorted = index ? [...column].sort((a, b) => middle(a) - middle(b)) : column;
    const offset = ((tall - column.length) * (BOX.high + BOX.down)) / 2;
    sorted.forEach((node, row) => places.set(node.id, { x: index * (BOX.wide + BOX.across) + 1, y: offset + row * (BOX.high + BOX.down) + 1 }));
  });
  return { places, wide: columns.length * (BOX.wide + BOX.across) - BOX.across + 2, high: tall * (BOX.high + BOX.down) - BOX.down + 2 };
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function box(node, at, state) {
  const [name, ...rest] = String(node.label).split("\n");
  return svg(`g.node${node.file ? ".file" : ""}`, { transform: `translate(${at.x} ${at.y})`, "data-state": state ?? "" },
    svg("title", {}, `${node.label}${state ? ` (${state})` : ""}`),
    svg("rect", { width: BOX.wide, height: BOX.high, rx: node.file ? BOX.high / 2 : 8 }),
    svg("text.name", { x: BOX.wide / 2, y: rest.length || state ? 19 : 27, "text-anchor": "middle" }, short(name, 20)),
    rest.length || state ? svg("text", { x: BOX.wide / 2, y: 35, "text-anchor": "middle" }, short([rest[0], state].filter(Boolean).join(" · "), 26)) : null);
}

/** Return the graph as a figure. `states` maps names to states. */
export function graph({ nodes, edges }, states = {}) {
  if (!nodes.length) return el("p.soft", {}, "This recipe has no steps.");
  const { places, wide, high } = placed(nodes, edges);
  const lines = edges.filter(([from, to]) => places.has(from) && places.has(to)).map(([from, to]) => {
    const [a, b] = [places.get(from), places.get(to)];
    const [x0, y0, x1, y1] = [a.x + BOX.wide, a.y + BOX.high / 2, b.x, b.y + BOX.high / 2];
    const middle = (x0 + x1) / 2;
    return svg("path.edge", { d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}` });
  });
  const stateOf = (node) => states[node.id] ?? states[String(node.label).split("\n")[0]];
  const picture = svg("svg.graph", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "img",
    "aria-label": `Graph of ${nodes.length} files and steps` }, lines, nodes.map((node) => box(node, places.get(node.id), stateOf(node))));
  picture.style.minWidth = `${Math.round(wide * 0.6)}px`; // smaller letters cannot be read: then it scrolls
  return el("div.scroll.graph-box", { tabindex: "0", "aria-label": "Graph of the recipe" }, picture);
}
