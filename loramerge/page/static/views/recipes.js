// Recipes: open one, edit its text, see its graph and what is up to date, run it.

import { post } from "../api.js";
import { asked } from "../dialog.js";
import { el, fill, later } from "../dom.js";
import { graph } from "../graph.js";
import { jobPlace } from "../job.js";
import { start } from "../jobs.js";
import { newest } from "../live.js";
import { icon } from "../icons.js";
import { columns, empty, panel, table } from "../parts.js";
import { pick } from "../picker.js";
import { remembered } from "../store.js";
import { copy, fail, failure, say } from "../toast.js";
import { base, ranks, size } from "../words.js";

const FIRST = { path: "", text: "", saved: "", set: {}, force: false };
const EXAMPLE = `# Two adapters in one file, then a smaller one.
version: 1
vars: {w: 0.6}
inputs: {character: zuzu, look: polka}
steps:
  both:
    mix: {adapters: ["character:0.8", "look:\${w}"]}
  small:
    resize: {adapter: both, rank: 4}
    save: out/both-r4.safetensors
`;

function taskTable(tasks) {
  return table(["Task", "Verb", "State", "Output", "Rank", "Size"], tasks.map((one) => [
    el("th", { scope: "row" }, one.name), one.verb,
    [el("span.state-word", { "data-state": one.state }, one.state ?? ""), one.refused ? el("p.small.bad-text", {}, one.refused) : one.reason ? el("p.soft.small", {}, one.reason) : null],
    one.save ? base(one.save) : el("span.soft", {}, "in memory"), ranks(one.ranks), size(one.size)]));
}

export function show(root, { about, query }) {
  const { value, keep } = remembered("recipes", FIRST);
  const place = el("div.recipe-seen", { "aria-live": "polite" });
  const running = jobPlace(() => look());
  const name = el("span.path", {});
  const area = el("textarea.code-area", { spellcheck: "false", "aria-label": "Text of the recipe", rows: 18, oninput: () => {
    value.text = area.value;
    keep();
    draw();
    soon();
  } });
  const set = el("div.fields.variables");
  const runButton = el("button.primary", { onclick: () => run() }, icon("play"), "Run");
  const changed = () => value.text !== value.saved;
  const draw = () => {
    name.textContent = value.path ? `${value.path}${changed() ? " (changed)" : ""}` : "not saved yet";
    runButton.disabled = !value.text.trim();
    textPanel.hidden = !value.text && !value.path && document.activeElement !== area;
  };
  const variables = (found) => fill(set, Object.entries(found.variables).map(([word, standard]) => {
    const id = `var-${word}`;
    return el("div.field", {}, el("label", { for: id }, word), el("input", { id, value: String(value.set[word] ?? ""), placeholder: JSON.stringify(standard), oninput: (event) => {
      if (event.target.value === "") delete value.set[word];
      else value.set[word] = event.target.value;
      keep();
      soon();
    } }));
  }));
  let words = "";
  const queue = newest(() => post("/api/recipe", { ...(changed() || !value.path ? { text: value.text, beside: value.path } : { path: value.path }), set: value.set }), {
    busy: (is) => place.classList.toggle("busy", is),
    done: (found) => {
      const known = JSON.stringify(found.variables);
      if (known !== words) {
        words = known;
        variables(found);
      }
      const { mistakes, tasks } = found;
      const states = Object.fromEntries(tasks.map((one) => [one.name, one.state]));
      fill(place, mistakes.length ? el("div.note.bad", { role: "alert" }, icon("warn"), el("ul", {}, mistakes.map((one) => el("li", {}, one)))) : null,
        mistakes.length ? null : graph(found.graph, states), tasks.length ? taskTable(tasks) : null);
    },
    failed: (error) => fill(place, failure(error)),
  });
  const look = () => {
    if (value.text.trim()) queue.ask(1);
    else fill(place, empty("A recipe repeats a result to the byte", "Every panel here can save one. Open a recipe, or start from a small one.",
      el("div.row.centre", {}, el("button.primary", { onclick: () => take("", EXAMPLE) }, "Start from a small one"), el("button", { onclick: open }, icon("folder"), "Open"))));
  };
  const soon = later(look, 300);
  function take(path, text) {
    Object.assign(value, { path, text, saved: path ? text : "", set: {} });
    words = "";
    area.value = text;
    keep();
    draw();
    look();
  }
  async function load(path) {
    try {
      const found = await post("/api/recipe", { path });
      take(path, found.text);
    } catch (error) {
      fail(error);
    }
  }
  async function open() {
    const found = await pick({ refers: "recipes", about });
    if (found) await load(found[0].path ?? found[0].reference);
  }
  async function save() {
    const path = value.path || (await asked("Save the recipe", { label: "File", value: "recipe.yaml" }));
    if (!path) return false;
    try {
      await post("/api/recipe/save", { path, text: value.text, force: path === value.path });
    } catch (error) {
      fail(error);
      return false;
    }
    Object.assign(value, { path, saved: value.text });
    keep();
    draw();
    say(`Saved ${base(path)}`);
    return true;
  }
  async function run() {
    if (changed() && !(await save())) return;
    try {
      const { id, already } = await start({ recipe: value.path, set: value.set, force: value.force });
      if (already) say("This recipe is running already.");
      running.show(id);
    } catch (error) {
      fail(error);
    }
  }
  const shipped = el("select", { "aria-label": "Recipes that come along", onchange: (event) => {
    const found = about.recipes.find((one) => one.name === event.target.value);
    if (found) take("", found.text);
    event.target.value = "";
  } }, el("option", { value: "" }, "Examples…"), about.recipes.map((one) => el("option", { value: one.name, title: one.summary }, one.name)));
  const force = el("input", { type: "checkbox", checked: value.force, onchange: () => {
    value.force = force.checked;
    keep();
  } });
  const textPanel = panel("Text", area, set, el("label.check", {}, force, "Replace outputs that this recipe did not make"));
  root.append(
    el("div.toolbar", {}, el("button", { onclick: open }, icon("folder"), "Open"), shipped, name, el("span.grow"),
      el("button.quiet", { onclick: () => copy(value.text, "Recipe") }, icon("copy"), "Copy"),
      el("button", { onclick: save }, "Save"), runButton),
    columns([textPanel], [panel("Graph and tasks", place, running.node)], ".even"));
  area.value = value.text;
  draw();
  if (query.get("path")) load(query.get("path"));
  else look();
  return () => {
    soon.cancel();
    queue.stop();
    running.stop();
  };
}
