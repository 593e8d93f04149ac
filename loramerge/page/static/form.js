// The form of a verb, from its own parameters: what matters first, the rest under "More".

import { el, fill, spoken as inWords } from "./dom.js";
import { field } from "./fields.js";
import { spoken } from "./weights.js";

// what most people set, in this order; a verb that is not here shows what must be given
const FIRST = {
  mix: ["method"],
  resize: ["adapter"],
  bake: ["base", "adapters"],
  merge: ["models", "base", "method", "dtype"],
  convert: ["adapter", "for", "to", "dtype"],
  extract: ["tuned", "base", "rank", "max_size", "for"],
  train: ["base", "images", "trigger", "rank", "steps", "lr", "resolution", "method", "prompt", "vram"],
  inspect: ["files", "deep", "spectrum", "base"],
  diff: ["a", "b"],
  compare: ["files"],
  verify: ["file", "base", "lora"],
  heal: ["adapter", "only"],
  unbake: ["checkpoint", "lora", "base"],
  preview: ["base", "adapters", "prompt", "seed", "weight", "together"],
  card: ["file", "base_model", "license"],
  meta: ["file", "set", "unset"],
};
// verbs that need one of these, too
const ONE_OF = { bake: ["adapters", "dtype", "storage"], unbake: ["lora"] };
const NEVER = new Set(["force", "weights", "explain", "dry_run", "exit_code", "csv", "html"]);

/** Return the parameters that a person sets, by word: the output and force belong to the panel's end. */
export function settable(verb, info) {
  return info.parameters.filter((one) => !one.output && !NEVER.has(one.word) && !(verb === "bake" && one.word === "lora"));
}

const belongs = (one, operator) => !one.operators?.length || one.operators.includes(operator);

/** Return values in the words of recipes: only what is given, and of the operator's parameters only its own. */
export function wire(verb, info, values, about) {
  const found = {};
  const operator = values.method ?? info.parameters.find((one) => one.word === "method")?.default;
  for (const one of settable(verb, info)) {
    const value = values[one.word];
    if (value === undefined || value === null || value === "" || !belongs(one, operator)) continue;
    if (Array.isArray(value) && !value.length) continue;
    const said = (item) => (typeof item !== "object" ? item : one.weighted ? spoken(item, about.presets) : item.name);
    found[one.word] = Array.isArray(value) ? value.map(said) : said(value);
  }
  return found;
}

/** Return a parameter of several operators with the help and the default that it has for one. */
function forOperator(one, operator) {
  if (!one.operators?.length) return one;
  const parts = one.help.split(/(?<=\.) (?=[\w-]+(?:, [\w-]+)*: )/);
  const own = parts.map((part) => part.match(/^([\w-]+(?:, [\w-]+)*): (.*)$/s)).find((found) => found?.[1].split(", ").includes(operator));
  if (!own) return one;
  const standard = own[2].match(/\s*\[default: ([^\]]+)\]/);
  return { ...one, help: own[2].replace(standard?.[0] ?? "", ""), default: one.default ?? standard?.[1] ?? null };
}

/** Return the words of parameters that must be given and are not. */
export function missing(verb, info, values) {
  const lacks = (word) => values[word] === undefined || values[word] === null || values[word].length === 0;
  const words = settable(verb, info).filter((one) => one.required && lacks(one.word)).map((one) => one.word);
  return ONE_OF[verb]?.every(lacks) ? [...words, ONE_OF[verb][0]] : words;
}

/**
 * Return `{node, draw}`.
 *
 * @param {{verb: string, info: object, values: object, about: object, skip?: string[], onchange: (word: string) => void, first?: string[], moreLabel?: string}} options
 *   `values` is changed in place
 */
export function form({ verb, info, values, about, skip = [], onchange, first, kept = {} }) {
  const node = el("div.form");
  const all = settable(verb, info).filter((one) => !skip.includes(one.word));
  const words = first ?? FIRST[verb] ?? all.filter((one) => one.required).map((one) => one.word);
  const leading = words.map((word) => all.find((one) => one.word === word)).filter(Boolean);
  const rest = all.filter((one) => !words.includes(one.word));
  const make = (one) => field(forOperator(one, operatorOf()), values[one.word], (value) => {
    if (value === undefined) delete values[one.word];
    else values[one.word] = value;
    onchange(one.word);
    if (one.word === "method") draw();
  }, about);
  const operatorOf = () => values.method ?? all.find((one) => one.word === "method")?.default;
  function draw() {
    const operator = operatorOf();
    const chosen = about.operators.find((one) => one.name === operator);
    const own = rest.filter((one) => one.operators?.length && belongs(one, operator));
    const more = rest.filter((one) => !one.operators?.length);
    const set = more.filter((one) => values[one.word] !== undefined).length;
    const details = more.length ? el("details.more", { open: kept.more ?? false, ontoggle: () => (kept.more = details.open) },
      el("summary", {}, leading.length ? `More settings${set ? ` (${set} set)` : ""}` : "Settings"),
      more.length > 12 ? el("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting",
        oninput: (event) => narrow(details, event.target.value) }) : null,
      el("div.fields", {}, more.map(make))) : null;
    fill(node, el("div.fields", {}, leading.map(make)),
      chosen && words.includes("method") && !skip.includes("method") ? explained(chosen, verb === "merge") : null,
      own.length ? el("div.fields", {}, own.map(make)) : null, details);
  }
  draw();
  return { node, draw };
}

function narrow(details, text) {
  const wanted = text.trim().toLowerCase();
  for (const one of details.querySelectorAll(".field")) one.hidden = !one.textContent.toLowerCase().includes(wanted);
}

/** Return what an operator is for. */
function explained(operator, ofModels) {
  return el("div.explained", {},
    operator.formula ? el("p.formula", {}, operator.formula) : null,
    el("p", {}, inWords(ofModels ? operator.when_models : operator.when)),
    ofModels ? el("p.soft.small", {}, "ΔW is a model's change from the base. Without a base, it is the model's weights.") : null,
    operator.source ? el("p.soft.small", {}, `Source: ${operator.source}`) : null);
}
