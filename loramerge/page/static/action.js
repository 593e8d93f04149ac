// The end of every panel: where the result goes, Run, and the same as a command and as a recipe.

import { keyOf, post } from "./api.js";
import { asked } from "./dialog.js";
import { el, fill, fresh, later } from "./dom.js";
import { icon } from "./icons.js";
import { jobPlace } from "./job.js";
import { ACTIVE, job, onChange, start } from "./jobs.js";
import { remembered } from "./store.js";
import { copy, fail, failure, say } from "./toast.js";

const KNOWN_ENDING = /\.(safetensors|gguf|ckpt|pt|pth|bin|npz)$|[\\/]$/i;

/** Return a name with the ending that its file gets, where it has none and the result is a single file. */
function completed(name, gives, { to, for: program, base, storage }) {
  const single = gives === "adapter" ? !to && !program : gives === "checkpoint" && !storage && /\.safetensors$/i.test(base);
  return single && !KNOWN_ENDING.test(name) ? `${name}.safetensors` : name;
}

const tabs = remembered("action-tab", { tab: "command" });

function saveRecipe(verb, text, unnamed) {
  return async () => {
    if (unnamed()) return;
    const path = await asked("Save as recipe", {
      label: "File", value: `${verb}.yaml`, help: "Relative to the current folder. `loramerge run FILE` repeats it.",
    });
    if (!path) return;
    const name = /\.ya?ml$/i.test(path) ? path : `${path}.yaml`;
    const write = (force) => post("/api/recipe/save", { path: name, text: text(), force });
    try {
      await write(false);
    } catch (error) {
      if (error.status !== 409 && !/exists/.test(error.message)) return fail(error);
      return say(`${name} exists already.`, { label: "Replace", act: () => write(true).then(() => say(`Saved ${name}`), fail) });
    }
    return say(`Saved ${name}`, { label: "Open", act: () => (location.hash = `#/recipes?path=${encodeURIComponent(name)}`) });
  };
}

/** Return `{node, strip}`: the two texts in tabs, with Copy and Save. */
function texts(verb, unnamed) {
  const now = { command: "", yaml: "" };
  const code = el("pre.code", { tabindex: "0", "aria-label": "The same as text" });
  const names = { command: "Command", yaml: "YAML" };
  const choose = (name) => () => {
    tabs.value.tab = name;
    tabs.keep();
    draw();
  };
  const buttons = Object.entries(names).map(([name, text]) =>
    el("button.tab", { role: "tab", "data-tab": name, onclick: choose(name) }, text));
  const draw = () => {
    for (const one of buttons) one.setAttribute("aria-selected", String(one.dataset.tab === tabs.value.tab));
    code.textContent = now[tabs.value.tab] || "—";
  };
  const uses = [
    el("button.quiet", { onclick: () => (tabs.value.tab === "yaml" && unnamed()) || copy(now[tabs.value.tab], names[tabs.value.tab]) }, icon("copy"), "Copy"),
    el("button.quiet", { onclick: saveRecipe(verb, () => now.yaml, unnamed) }, "Save as recipe")];
  const node = el("div.texts", {},
    el("div.row", {}, el("div.tabs", { role: "tablist", "aria-label": "The same as text" }, buttons), el("span.grow"), uses),
    code);
  draw();
  return {
    node,
    set(next) {
      Object.assign(now, next);
      draw();
    },
    allow: (is) => uses.forEach((one) => (one.disabled = !is)),
  };
}

/**
 * Return the end of a panel: `{node, update, hold, stop, run}`; `hold(true)`: nothing may run, the plan is an error.
 *
 * @param {string} verb
 * @param {() => object|null} values of the action; null while something is missing
 * @param {{label?: string, missing?: string, output?: string|null, gives?: string, kept?: object, keep?: Function, done?: Function, started?: Function, ready?: Function, act?: Function}} options
 *   `output`: the word of the output, null if nothing is written; `kept`: where its name is remembered; `act`: what Run does, where it is no job;
 *   `started`: shows the job elsewhere
 */
export function actionPanel(verb, values, options = {}) {
  const { label = "Run", missing = "", output = "output", kept = {}, keep = () => {}, done = () => {} } = options;
  const unknown = innerWidth < 560 ? "automatic" : "chosen by the inputs' names";
  const id = fresh("output");
  const shown = texts(verb, () => {
    if (!output || told.output) return false;
    say("Name the file above first: a recipe says where its result goes.");
    input.focus();
    return true;
  });
  const place = jobPlace(done);
  const message = el("div.action-note");
  const replace = el("input", { type: "checkbox", onchange: () => update() });
  const replaceRow = el("label.check.replace", { hidden: true }, replace, el("span"));
  const input = el("input", {
    id, value: kept.output ?? "", autocomplete: "off", spellcheck: "false", placeholder: unknown,
    oninput: () => {
      kept.output = input.value;
      keep();
      update();
    },
  });
  const button = el("button.primary", { disabled: true, onclick: () => run() }, icon("play"), label);
  const row = el("div.row.action-row", {}, output ? el("div.field.grow", {}, el("label", { for: id }, "Save as"), input) : el("span.grow"), button);
  const node = el(`section.panel.action${output ? "" : ".still"}`, { "aria-label": "Output and run" },
    row,
    replaceRow, message, place.node, shown.node);

  let ready = false;
  let held = false;
  let free = false; // nothing stands where the result goes
  let latest = 0;
  let told = {}; // the newest answer, and what was asked
  const asActed = () => {
    const found = values();
    if (!found) return null;
    const name = output && input.value.trim();
    return { ...found, ...(name ? { [output]: completed(name, options.gives, found) } : {}), ...(replace.checked ? { force: true } : {}) };
  };
  const set = (isFree) => {
    free = isFree;
    ready = free && !held;
    button.disabled = !ready;
    shown.allow(!held && Boolean(told.yaml));
  };
  const undescribed = () => {
    told = {};
    shown.set({ command: "", yaml: "" });
    replaceRow.hidden = true;
    input.placeholder = unknown;
    set(false);
  };
  const ask = later(async () => {
    const mine = ++latest;
    const found = asActed();
    if (!found) {
      const needed = typeof missing === "function" ? missing() : missing;
      fill(message, needed ? el("p.soft", {}, needed) : null);
      undescribed();
      node.classList.add("empty");
      return;
    }
    node.classList.remove("empty");
    try {
      const answer = await post("/api/action", { verb, values: found, latest: keyOf(`action-${verb}`) });
      if (mine !== latest) return;
      const other = replace.checked && told.output !== answer.output; // another file than was agreed to
      told = { ...answer, asked: JSON.stringify(found) };
      if (other) {
        replace.checked = false;
        return ask();
      }
      input.placeholder = answer.output ?? unknown;
      shown.set({ command: answer.command, yaml: answer.yaml });
      const asks = answer.exists && !found.resume; // a run that goes on replaces its own adapter
      replaceRow.hidden = !asks;
      replaceRow.lastChild.textContent = `Replace the file that is there: ${answer.output}`;
      fill(message);
      set(!asks || replace.checked);
      options.ready?.(answer);
    } catch (error) {
      if (mine !== latest) return;
      undescribed(); // what was described is another action
      fill(message, failure(error));
    }
  }, 120);
  function update() {
    ask();
  }
  async function run() {
    if (!ready) return;
    if (replace.checked && JSON.stringify(asActed()) !== told.asked) return update();
    if (options.act) {
      options.act();
      return;
    }
    button.disabled = true;
    try {
      const { id: started, already } = await start({ verb, values: asActed() });
      if (already) say("This is running already.");
      if (options.started) options.started(started);
      else place.show(started);
      replace.checked = false;
    } catch (error) {
      fail(error);
    }
    update();
  }
  const own = new ResizeObserver(() => {
    node.style.setProperty("--own", `${node.offsetHeight}px`);
    node.style.setProperty("--peek", `${shown.node.offsetTop || row.offsetTop + row.offsetHeight + 12}px`);
  });
  own.observe(node);
  const listening = onChange((which) => !ACTIVE.has(job(which)?.state) && update()); // what a job wrote is there now
  update();
  const hold = (is) => {
    held = is;
    set(free);
  };
  return { node, update, hold, run, stop: () => (own.disconnect(), listening(), place.stop()) };
}
