// Elements from plain data. Text only ever becomes a text node, so no markup of a file is read as markup.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "indeterminate", "open", "draggable", "hidden"]);

function built(node, tag, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name) && name in node) node[name] = value;
    else if (value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...shown(children));
  return node;
}

const shown = (children) => children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false);

function named(make, spec) {
  const [tag, ...classes] = spec.split(".");
  const node = make(tag || "div");
  if (classes.length) node.setAttribute("class", classes.join(" "));
  return node;
}

/** Make an HTML element: `el("p.small", {id: "x", onclick: act}, "text", child)`. */
export function el(spec, properties, ...children) {
  const node = named((tag) => document.createElement(tag), spec);
  if (node.localName === "button") node.type = "button"; // unless it says that it sends its form
  return built(node, spec, properties, children);
}

/** Make an SVG element in the same way. */
export function svg(spec, properties, ...children) {
  return built(named((tag) => document.createElementNS(SVG, tag), spec), spec, properties, children);
}

/** Return the path of an SVG line through points. */
export const pathOf = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;

/** Replace everything inside a node. */
export function fill(node, ...children) {
  node.replaceChildren(...shown(children));
  return node;
}

/** Return a text with `code` between backticks as elements. */
export const spoken = (text) => String(text ?? "").split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

let count = 0;
/** Return an id that no other element has. */
export function fresh(word = "n") {
  count += 1;
  return `${word}-${count}`;
}

/** Return a function that runs the given one once things have been quiet for some milliseconds. */
export function later(act, quiet) {
  let timer = 0;
  const wrapped = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), quiet);
  };
  wrapped.cancel = () => clearTimeout(timer);
  return wrapped;
}
