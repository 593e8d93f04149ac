// Any verb that makes something: its form, its plan, its end. New verbs are shown by this.

import { actionPanel } from "../action.js";
import { el, spoken } from "../dom.js";
import { form, missing, settable, wire } from "../form.js";
import { columns, panel } from "../parts.js";
import { planPanel } from "../plan.js";
import { itemOf } from "../stack.js";
import { remembered } from "../store.js";
import { scaledToOne } from "../weights.js";
import { label } from "../words.js";

const LABELS = { unbake: "Take out", preview: "Draw", card: "Write the card", meta: "Run" };
const PLANNED = new Set(["adapter", "checkpoint", "picture"]);

/** Put a base of the address into the form, and a file into the first parameter that takes one. */
export function given(info, verb, values, query) {
  const files = query.getAll("file");
  const base = query.get("base");
  // what is checked or drawn is that file, without what was chosen for another one
  if (base || (verb === "verify" && files.length)) for (const word of ["base", "adapters", "lora"]) delete values[word];
  if (base) values.base = info.parameters.find((one) => one.word === "base").many ? [itemOf(base)] : base;
  if (!files.length) return Boolean(base);
  const takes = settable(verb, info).filter((one) => ["adapters", "models", "files"].includes(one.refers));
  const one = takes.find((each) => each.required) ?? takes[0];
  if (!one) return false;
  values[one.word] = one.many ? [...(values[one.word] ?? []).filter((item) => !files.includes(item.name ?? item)), ...files.map((name) => itemOf(name))] : files[0];
  return true;
}

/** Return what a verb is for: its first sentence, and the rest on demand. */
export function lead(verb, info) {
  const [first, ...rest] = info.help.replaceAll(/\s*\n\s*/g, " ").split(/(?<=\.) (?=[A-Z])/);
  return el("div.lead", {}, el("p", {}, spoken(first)),
    rest.length ? el("details.more", {}, el("summary", {}, `More about ${verb}`), el("p", {}, spoken(rest.join(" ")))) : null);
}

export function show(root, { about, verbs, verb, query }) {
  const info = verbs[verb];
  const { value, keep } = remembered(verb, { values: {}, output: "", more: false });
  if (given(info, verb, value.values, query)) keep();
  const output = info.parameters.find((one) => one.output)?.word ?? null;
  const mend = (error) => {
    const models = value.values.models ?? [];
    const scaled = /must sum to 1/.test(error) && scaledToOne(models.map((one) => one.weight), error);
    return scaled && el("button", { onclick: () => {
      models.forEach((one, index) => (one.weight = scaled[index]));
      settings.draw();
      changed();
    } }, "Scale to sum 1");
  };
  const lacking = () => missing(verb, info, value.values);
  const values = () => (lacking().length ? null : wire(verb, info, value.values, about));
  const plan = PLANNED.has(info.gives) ? planPanel(verb, { refused: (is) => end.hold(is), mend }) : null;
  const needed = () => `Needed: ${lacking().map((word) => label(word).toLowerCase().replace(/^(adapter|base|model|file|checkpoint)s?$/, (_, noun) => `${/^a/.test(noun) ? "an" : "a"} ${noun}`)).join(" and ")}.`;
  const end = actionPanel(verb, values, { label: LABELS[verb] ?? label(verb), missing: needed, output, gives: info.gives, kept: value, keep });
  const changed = () => {
    keep();
    end.update();
    plan?.ask(values());
  };
  const settings = form({ verb, info, values: value.values, about, onchange: changed, kept: value });
  root.append(lead(verb, info), columns([panel("Settings", settings.node), end.node], plan && [plan.node]));
  plan?.ask(values());
  return () => {
    plan?.stop();
    end.stop();
  };
}
