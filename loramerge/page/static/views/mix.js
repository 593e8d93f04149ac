// Mix: a stack of adapters with sliders, the plan and a picture that follow them.

import { actionPanel } from "../action.js";
import { el, later } from "../dom.js";
import { form, wire } from "../form.js";
import { openGrid } from "../grid.js";
import { icon } from "../icons.js";
import { columns, empty, panel } from "../parts.js";
import { librarySearch, pick } from "../picker.js";
import { planPanel } from "../plan.js";
import { FIRST_SETTINGS, previewPanel } from "../preview.js";
import { dragCard, itemOf, stack } from "../stack.js";
import { remembered } from "../store.js";
import { plain, spoken } from "../weights.js";
import { cardLine, stem } from "../words.js";

// only these leave the result the weighted sum, which a preview draws from its parts
const PLAIN = new Set(["adapters", "to", "for", "dtype", "embeddings", "skip_unknown"]);
const PLAN_EVERY = 300; // milliseconds between plans while a slider moves
const FIRST = { adapters: [], values: {}, output: "", draw: FIRST_SETTINGS, more: false };
const OFFERED = ["zuzu", "polka"]; // at full weight each: less of polka draws no dots

function welcome(take) {
  return empty("What goes together?", "Add adapters below, drag them here, or start with the two that come along: a character and a style.",
    el("button.primary", { onclick: take }, icon("mix"), "Mix zuzu and polka"));
}

function tray(take, about) {
  const list = el("ul.tray-list");
  const browse = async () => (await pick({ refers: "adapters", about }))?.forEach(take);
  const search = librarySearch(list, { limit: 6, sort: "newest", descending: "1" }, ({ cards, total }) => [cards.map((card) => {
    const node = el("button.tray-card", { title: card.path, onclick: () => take(card) }, icon("add"),
      el("span.tray-name", {}, stem(card.name)), el("span.soft.small", {}, cardLine(card)));
    dragCard(node, card);
    return el("li", {}, node);
  }), total > cards.length ? el("li", {}, el("button.quiet", { onclick: browse }, `${total - cards.length} more…`)) : null]);
  return el("div.tray", { role: "group", "aria-label": "Add from the library" }, el("div.row", {}, search, el("button", { onclick: browse }, icon("folder"), "Browse")), list);
}

function known(name) {
  return itemOf(name, { family: OFFERED.includes(name) ? "tiny" : null });
}

export function show(root, { about, verbs, query }) {
  const info = verbs.mix;
  const { value, keep } = remembered("mix", FIRST);
  const added = query.getAll("add").filter((name) => query.getAll("add").length === 1 || !value.adapters.some((one) => one.name === name));
  for (const name of added) value.adapters.push(known(name));
  if (query.has("add")) history.replaceState(null, "", `${location.pathname}${location.search}#/mix`);

  const values = () => (value.adapters.length ? wire("mix", info, { ...value.values, adapters: value.adapters }, about) : null);
  const body = (items = value.adapters) => {
    if (!items.length) return null;
    const all = wire("mix", info, { ...value.values, adapters: items }, about);
    return Object.keys(all).every((word) => PLAIN.has(word)) ? { adapters: items.map((one) => spoken(one, about.presets)) } : { of: { verb: "mix", values: all } };
  };
  const unfit = () => {
    const base = about.bases?.find((one) => one.name === value.draw.base && one.shipped);
    const other = base && value.adapters.find((one) => one.family && one.family !== "tiny");
    return other ? `${base.name} cannot draw ${other.label}, which is for ${other.family}. Choose a base of that family below.` : null;
  };
  const plan = planPanel("mix", { refused: (is) => end.hold(is) });
  const preview = previewPanel({ about, settings: value.draw, keep, onsettings: () => preview.ask(body()), settled: () => planNow(true), unfit });
  const end = actionPanel("mix", values, { label: "Save the mix", missing: "Add at least one adapter.", gives: info.gives, kept: value, keep });
  // one worker draws and plans: while something moves, pictures come first, then a plan of the headers now and then
  let planned = 0;
  let due = false;
  const planNow = (whole) => {
    if (!due) return;
    due = !whole;
    planned = Date.now();
    plan.ask(values(), whole);
  };
  const slow = later(() => {
    end.update();
    if (!preview.isDrawing()) planNow(true);
  }, 60);
  const changed = () => {
    keep();
    due = true;
    preview.ask(body());
    if (Date.now() - planned > PLAN_EVERY) planNow(false);
    slow();
    tools.hidden = !value.adapters.length;
  };
  const takeOffered = () => {
    value.adapters.push(...OFFERED.map(known));
    all.draw();
    changed();
  };
  const all = stack(value.adapters, { about, empty: welcome(takeOffered), onchange: changed, onlearn: () => (keep(), preview.ask(body())), adding: false });
  const settings = form({ verb: "mix", info, values: value.values, about, skip: ["adapters"], kept: value, onchange: changed });
  const grid = () => openGrid({
    items: value.adapters.slice(0, 2), settings: value.draw,
    body: (levels) => body(value.adapters.map((one, index) => (index < levels.length ? { ...one, weight: plain(levels[index]) } : one))),
    take: (levels) => {
      levels.forEach((level, index) => (value.adapters[index].weight = plain(level)));
      all.draw();
      changed();
    },
  });
  const tools = el("div.row.stack-tools", { hidden: !value.adapters.length },
    about.drawing === false ? null : el("button.quiet", { onclick: grid }, icon("library"), "Grid of weights"),
    el("span.grow"),
    el("button.quiet", { onclick: () => {
      Object.assign(value, { adapters: [], values: {}, output: "" });
      keep();
      dispatchEvent(new HashChangeEvent("hashchange"));
    } }, "Start over"));
  root.append(columns([
    panel("Adapters", el("h2", {}, "Adapters"), all.node, tools, tray((card) => all.add(card), about)),
    panel("Method", settings.node),
    end.node], [preview.node, plan.node]));
  if (added.length) keep();
  preview.ask(body());
  plan.ask(values());
  return () => {
    slow.cancel();
    plan.stop();
    preview.stop();
    end.stop();
  };
}
