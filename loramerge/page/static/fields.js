// One field for each kind of parameter. A value that is not given is `undefined`, and is not sent.

import { el, fresh, spoken } from "./dom.js";
import { icon } from "./icons.js";
import { pick } from "./picker.js";
import { itemOf, stack } from "./stack.js";
import { label } from "./words.js";

const shown = (value) => (value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length) ? "" : String(value));

function labelled(one, id, control, extra) {
  return el(`div.field.kind-${one.kind}`, { "data-word": one.word },
    el("label", { for: id }, one.label ?? label(one.word), one.required ? el("span.needed", { title: "Must be given" }, " needed") : null),
    control, one.help ? el("p.help", { id: `${id}-help` }, spoken(one.help)) : null, extra);
}

function choiceField(one, value, change, titles = {}) {
  const id = fresh(one.word);
  const select = el("select", { id, "aria-describedby": `${id}-help`, onchange: () => change(select.value === "" ? undefined : select.value) });
  const standard = shown(one.default);
  const said = (choice) => (titles[choice] ? `${choice} – ${titles[choice]}` : choice === standard ? `${choice} (default)` : choice);
  if (!one.required) select.append(el("option", { value: "" }, standard ? said(standard) : "default"));
  for (const choice of one.choices ?? []) if (String(choice) !== standard) select.append(el("option", { value: choice }, said(choice)));
  select.value = value ?? "";
  return labelled(one, id, select);
}

function switchField(one, value, change) {
  const id = fresh(one.word);
  const box = el("input.switch", { id, type: "checkbox", role: "switch", checked: value ?? one.default ?? false, "aria-describedby": `${id}-help`,
    onchange: () => change(box.checked === (one.default ?? false) ? undefined : box.checked) });
  return el("div.field.kind-switch", { "data-word": one.word },
    el("div.switch-row", {}, box, el("label", { for: id }, one.label ?? label(one.word))),
    el("p.help", { id: `${id}-help` }, spoken(one.help)));
}

/** Return a field that is typed into; `read` makes the value of a text. */
function typedField(one, value, change, read, tag = "input", properties = {}) {
  const id = fresh(one.word);
  const input = el(tag, {
    id, placeholder: shown(one.default) || "default", value: shown(value), autocomplete: "off", spellcheck: "false", "aria-describedby": `${id}-help`,
    ...properties, oninput: () => change(input.value.trim() ? read(input.value) : undefined),
  });
  return labelled(one, id, input);
}

const numeric = (text) => (Number.isFinite(Number(text)) ? Number(text) : text.trim());

function numberField(one, value, change) {
  if (one.per_module) return typedField(one, value, change, numeric, "input", { inputmode: "decimal" });
  const whole = one.kind === "whole";
  return typedField(one, value, change, Number, "input", {
    type: "number", inputmode: whole ? "numeric" : "decimal", step: whole ? 1 : "any", min: one.least ?? one.above, max: one.most ?? one.below,
  });
}

function textField(one, value, change) {
  const long = /prompt|negative/.test(one.word);
  return typedField(one, value, change, String, long ? "textarea" : "input", { rows: long ? 2 : null });
}

function listField(one, value, change) {
  const numbers = one.kind === "whole" || one.kind === "number";
  const read = (text) => {
    const lines = text.split(one.separated || numbers ? /[\n,]/ : "\n").map((line) => line.trim()).filter(Boolean);
    return lines.length ? (numbers ? lines.map(numeric) : lines) : undefined;
  };
  return typedField(one, value, change, read, "textarea", { rows: 2, placeholder: shown(one.default) || "one a line", value: (value ?? []).join("\n") });
}

function referenceField(one, value, change, about) {
  const id = fresh(one.word);
  const input = el("input", { id, value: value?.name ?? value ?? "", placeholder: one.required ? "a name or a path" : shown(one.default) || "none", autocomplete: "off", spellcheck: "false",
    "aria-describedby": `${id}-help`, list: one.refers === "bases" ? "bases" : null,
    oninput: () => change(input.value.trim() || undefined) });
  const choose = el("button", { "aria-label": `Choose: ${label(one.word)}`, onclick: async () => {
    const found = await pick({ refers: one.refers, about });
    if (!found) return;
    input.value = found[0].reference ?? found[0].path;
    change(input.value);
  } }, icon("folder"), "Choose");
  return labelled(one, id, el("div.joined", {}, input, choose));
}

function stackField(one, value, change, about) {
  const items = value ?? [];
  const noun = { bases: "base", models: "model", files: "file", folders: "folder" }[one.refers] ?? "adapter";
  const all = stack(items, { about, refers: one.refers, noun, weighted: one.weighted, onchange: () => change(items.length ? items : undefined) });
  return el("div.field.kind-stack", { "data-word": one.word, role: "group", "aria-label": label(one.word) },
    el("span.label", {}, label(one.word), one.required ? el("span.needed", {}, " needed") : null), one.weighted && /^Adapters with weights: [^.]*\.\d\.$/.test(one.help) ? null : el("p.help", {}, spoken(one.help)), all.node);
}

const titlesOf = (about) => Object.fromEntries(about.operators.map((one) => [one.name, one.summary]));

/** Return the field for a parameter; `change(value)` is called with what a person enters. */
export function field(one, value, change, about) {
  if (one.refers && one.many) return stackField(one, value?.map((item) => (typeof item === "string" ? itemOf(item) : item)), change, about);
  if (one.refers) return referenceField(one, value, change, about);
  if (one.many) return listField(one, value, change);
  if (one.kind === "choice" || one.choices?.length) return choiceField(one, value, change, one.word === "method" ? titlesOf(about) : {});
  if (one.kind === "switch") return switchField(one, value, change);
  if (one.per_module || one.kind === "number" || one.kind === "whole") return numberField(one, value, change);
  return textField(one, value, change);
}

/** Return the list of bases that text fields offer. */
export const baseList = (about) =>
  el("datalist", { id: "bases" }, about.bases.map((one) => el("option", { value: one.name })));
