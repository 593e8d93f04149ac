// The control for one adapter's weight: a slider, and its finer forms in a drawer.

import { curve } from "./curve.js";
import { el, fill, fresh } from "./dom.js";
import { segments } from "./parts.js";
import { slider } from "./slider.js";
import { brief, fitting, inMode, partsOf, presetOf } from "./weights.js";

const MODES = { one: "One weight", components: "Per component", blocks: "Per block", depth: "Curve" };
const DEPTH = ["first block", "", "middle", "", "last block"];

function modesOf(parts) {
  return Object.keys(MODES).filter((mode) =>
    mode === "components" ? parts.components.length > 1 : mode === "blocks" ? parts.vectors.length : mode !== "depth" || parts.depth);
}

function sliders(weight, changed) {
  return Object.entries(weight.parts).map(([part, value]) =>
    slider({ label: part, value, onchange: (next) => {
      weight.parts[part] = next;
      changed();
    } }).node);
}

function blocks(weight, about, parts, changed, redraw) {
  const { presets, vectors } = about;
  const length = weight.vector.length;
  const named = vectors[length] ?? [];
  const id = fresh("preset");
  const choice = el("select", { id, onchange: () => {
    if (choice.value) weight.vector = [...presets[choice.value]];
    changed();
    redraw();
  } });
  const fits = Object.keys(presets).filter((name) => presets[name].length === length);
  const now = presetOf(weight.vector, presets);
  choice.append(el("option", { value: "" }, "drawn"), ...fits.map((name) => el("option", { value: name }, name)));
  choice.value = now ?? "";
  const lengths = el("select", { "aria-label": "Number of blocks", onchange: () => {
    Object.assign(weight, inMode(weight, "blocks", parts, Number(lengths.value)));
    changed();
    redraw();
  } }, parts.vectors.map((one) => el("option", { value: one, selected: one === length }, `${one} blocks`)));
  const turn = (make) => () => {
    weight.vector = make(weight.vector);
    changed();
    redraw();
  };
  const drawn = curve({ values: weight.vector, names: named, label: "Weights of the blocks", onchange: (next) => {
    weight.vector = next;
    choice.value = presetOf(next, presets) ?? "";
    changed();
  } });
  return [
    el("div.row", {},
      fits.length ? [el("label.inline", { for: id }, "Preset"), choice] : null,
      parts.vectors.length > 1 ? lengths : null,
      el("span.grow"),
      el("button.quiet", { onclick: turn((all) => [...all].reverse()) }, "Mirror"),
      el("button.quiet", { onclick: turn((all) => all.map((one) => Number((one / 2).toFixed(4)))) }, "Halve"),
      el("button.quiet", { onclick: turn((all) => all.map(() => 1)) }, "All 1")),
    drawn,
  ];
}

function depth(weight, changed) {
  return [
    curve({ values: weight.points, names: DEPTH, label: "Weights from the first block to the last", onchange: (next) => {
      weight.points = next;
      changed();
    } }),
    weight.rest === null ? null : slider({ label: "Text encoder", value: weight.rest ?? 1, onchange: (next) => {
      weight.rest = next;
      changed();
    } }).node,
  ];
}

/**
 * Return the control: `{row, drawer}`; the slider stands in the row, the drawer below it.
 *
 * @param {object} item `{name, weight, family, components, open}`, changed in place
 */
export function weighting(item, about, changed) {
  const parts = partsOf(item, about.families);
  if (item.components) item.weight = fitting(item.weight, parts);
  const drawer = el("div.drawer", { hidden: !item.open });
  const row = el("div.weight");
  const note = el("span.soft.small.brief");
  const told = () => {
    note.textContent = brief(item.weight, about.presets);
    changed();
  };
  function change(mode) {
    item.weight = inMode(item.weight, mode, parts);
    changed();
    draw();
  }
  function draw() {
    const { weight } = item;
    note.textContent = brief(weight, about.presets);
    const own = weight.mode === "one"
      ? slider({ label: `Weight of ${item.label ?? item.name}`, value: weight.value, quiet: true, onchange: (next) => {
        weight.value = next;
        told();
      } })
      : null;
    fill(row, own ? own.node : note);
    const modes = modesOf(parts);
    fill(drawer,
      segments("Kind of weight", Object.fromEntries(modes.map((mode) => [mode, MODES[mode]])), weight.mode, change),
      weight.mode === "components" ? sliders(weight, told)
        : weight.mode === "blocks" ? blocks(weight, about, parts, told, draw)
          : weight.mode === "depth" ? depth(weight, told)
            : el("p.soft.small", {}, "0 leaves the adapter out, 1 is as trained. A double click on the slider goes back to 1.")
    );
  }
  draw();
  return { row, drawer };
}
