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

function perModuleField(one, value, change) {
  const id = fresh(one.word);
  const input = el("input", {
    id, inputmode: "decimal", placeholder: shown(one.default) || "default", value: shown(value), autocomplete: "off", spellcheck: "false", "aria-describedby": `${id}-help`,
    oninput: () => {
      const text = input.value.trim();
      change(text === "" ? undefined : Number.isFinite(Number(text)) ? Number(text) : text);
    },
  });
  return labelled(one, id, input);
}

function numberField(one, value, change) {
  const id = fresh(one.word);
  const whole = one.kind === "whole";
  const input = el("input", {
    id, type: "number", inputmode: whole ? "numeric" : "decimal", step: whole ? 1 : "any", min: one.least ?? one.above, max: one.most ?? one.below,
    placeholder: shown(one.default) || "default", value: shown(value), "aria-describedby": `${id}-help`,
    oninput: () => change(input.value === "" ? undefined : Number(input.value)),
  });
  return labelled(one, id, input);
}

function textField(one, value, change) {
  const id = fresh(one.word);
  const long = /prompt|negative/.test(one.word);
  const input = el(long ? "textarea" : "input", {
    id, rows: long ? 2 : null, placeholder: shown(one.default) || "default", value: shown(value), autocomplete: "off", spellcheck: "false",
    "aria-describedby": `${id}-help`, oninput: () => change(input.value === "" ? undefined : input.value),
  });
  return labelled(one, id, input);
}

function listField(one, value, change) {
  const id = fresh(one.word);
  const numeric = one.kind === "whole" || one.kind === "number";
  const read = () => {
    const lines = input.value.split(one.separated || numeric ? /[\n,]/ : "\n").map((line) => line.trim()).filter(Boolean);
    change(lines.length ? lines.map((line) => (numeric && Number.isFinite(Number(line)) ? Number(line) : line)) : undefined);
  };
  const input = el("textarea", { id, rows: 2, placeholder: shown(one.default) || "one a line", value: (value ?? []).join("\n"), spellcheck: "false", "aria-describedby": `${id}-help`, oninput: read });
  return labelled(one, id, input);
}

function referenceField(one, value, change, about) {
  const id = fresh(one.word);
  const input = el("input", { id, value: value?.name ?? value ?? "", placeholder: one.required ? "a name or a path" : shown(one.default) || "none", autocomplete: "off", spellcheck: "false",
    "aria-describedby": `${id}-help`, list: one.refers === "bases" ? "bases" : null,
    oninput: () => change(input.value.trim() || undefined) });
  const choose = el("button", { type: "button", "aria-label": `Choose: ${label(one.word)}`, onclick: async () => {
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
    el("span.label", {}, label(one.word), one.required ? el("span.needed", {}, " needed") : null), el("p.help", {}, spoken(one.help)), all.node);
}

const titlesOf = (about) => Object.fromEntries((about.operators ?? []).map((one) => [one.name, one.summary]));

/** Return the field for a parameter; `change(value)` is called with what a person enters. */
export function field(one, value, change, about) {
  if (one.refers && one.many) return stackField(one, value?.map((item) => (typeof item === "string" ? itemOf(item) : item)), change, about);
  if (one.refers) return referenceField(one, value, change, about);
  if (one.many) return listField(one, value, change);
  if (one.kind === "choice" || one.choices?.length) return choiceField(one, value, change, one.word === "method" ? titlesOf(about) : {});
  if (one.kind === "switch") return switchField(one, value, change);
  if (one.per_module && one.kind !== "choice") return perModuleField(one, value, change);
  if (one.kind === "number" || one.kind === "whole") return numberField(one, value, change);
  return textField(one, value, change);
}

/** Return the list of bases that text fields offer. */
export const baseList = (about) =>
  el("datalist", { id: "bases" }, (about.bases ?? []).map((one) => el("option", { value: one.name })));
