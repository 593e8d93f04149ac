// The library as a wall of cards.

import { get, link, post } from "../api.js";
import { menu } from "../dialog.js";
import { el, fill, later } from "../dom.js";
import { icon } from "../icons.js";
import { onLibrary } from "../jobs.js";
import { empty, iconButton } from "../parts.js";
import { pick } from "../picker.js";
import { dragCard } from "../stack.js";
import { drawnCover } from "../cover.js";
import { placeFor, waysOn } from "../ways.js";
import { remembered } from "../store.js";
import { copy, fail, say } from "../toast.js";
import { wall } from "../wall.js";
import { details } from "./card.js";
import { cardLine, plural, size, stem } from "../words.js";

const SORTS = { name: "Name", newest: "Newest", size: "Size", rank: "Rank", rating: "Rating", problems: "Problems" };
const DOWN = new Set(["newest", "size", "rank", "rating", "problems"]);
const FIRST = { words: "", family: "", sort: "name", duplicates: false };

function actions(card, again) {
  return [
    ...waysOn(card.reference).map(({ label, view, href }) => ({ label, icon: view, act: () => (location.hash = href) })),
    null,
    { label: "Tags, note and rating", icon: "star", act: () => details(card, again) },
    { label: "Copy path", icon: "copy", act: () => copy(card.path, "Path") },
  ];
}

function cover(card) {
  if (card.picture) return el("img.cover", { src: link(`/picture/library/${card.id}`), alt: "", loading: "lazy", decoding: "async" });
  return drawnCover(stem(card.name));
}

function worst(card) {
  const { problems } = card;
  if (!problems.length) return null;
  const bad = problems.some((one) => one.severity === "error");
  return el(`span.badge.${bad ? "bad" : "warn"}`, { title: problems.map((one) => one.text).join("\n") }, icon("warn"), plural(problems.length, "problem"));
}

function cardOf(again) {
  return (card) => {
    const more = iconButton("menu", `Actions for ${stem(card.name)}`, () => menu(more, actions(card, again)), { "aria-haspopup": "menu" }, ".card-menu");
    const words = [...card.trigger_words, ...card.tags];
    const node = el("article.card", { "data-card": card.id, "data-reference": card.reference },
      el("button.card-face", { "aria-label": `Details of ${stem(card.name)}`, onclick: () => details(card, again) }, cover(card)),
      el("div.card-text", {},
        el("div.row.card-head", {}, el("h3", { title: card.path }, stem(card.name)), more),
        el("p.soft.small", {}, cardLine(card, !card.rank && card.kinds.join(", "), size(card.size))),
        el("p.small.card-words", {}, words.slice(0, 4).map((word) => el("span.chip", {}, word)), worst(card)),
        card.rating ? el("p.stars.small", { "aria-label": `${card.rating} of 5` }, "★".repeat(card.rating)) : null),
      el("button.quiet.card-add", { "aria-label": `Add ${stem(card.name)} to the mix`, onclick: () => (location.hash = placeFor("mix", card.reference)) }, icon("add"), el("span", {}, "Mix")));
    dragCard(node, card);
    return node;
  };
}

async function addFolder(about) {
  const found = await pick({ refers: "folders", about, title: "Add a folder to the library" });
  if (!found) return;
  try {
    await post("/api/library/add", { folder: found[0].path ?? found[0].reference });
    await scan();
  } catch (error) {
    fail(error);
  }
}

async function scan() {
  try {
    await post("/api/library/scan");
    say("Reading the folders", { label: "Jobs", act: () => (location.hash = "#/jobs") });
  } catch (error) {
    fail(error);
  }
}

function welcome(about) {
  return empty("Start with the two adapters that come along",
    "zuzu is a character and polka a style, both for a tiny model that draws at once. Move two sliders and watch the picture.",
    el("div.row.centre", {},
      el("a.button.primary", { href: "#/mix?add=zuzu&add=polka" }, icon("mix"), "Mix zuzu and polka"),
      el("button", { onclick: () => addFolder(about) }, icon("folder"), "Add a folder of mine")),
    el("p.soft.small", {}, "A folder is only read: headers, previews and sizes. Nothing leaves this computer."));
}

export function show(root, { about, query }) {
  const { value, keep } = remembered("library", FIRST);
  const count = el("p.soft.small", { role: "status" });
  const families = el("select", { "aria-label": "Family", onchange: () => change("family", families.value) });
  const search = el("input.search", { type: "search", placeholder: "Search names, words, tags", "aria-label": "Search the library", value: value.words,
    oninput: later(() => change("words", search.value), 15) });
  const sort = el("select", { "aria-label": "Sort by", onchange: () => change("sort", sort.value) }, Object.entries(SORTS).map(([word, text]) => el("option", { value: word, selected: word === value.sort }, text)));
  const duplicates = el("input", { type: "checkbox", checked: value.duplicates, onchange: () => change("duplicates", duplicates.checked) });
  const body = el("div.wall-place");
  const filtered = () => value.words || value.family || value.duplicates;

  const all = wall({
    fetchPage: (offset, limit) => get("/api/library", {
      words: value.words, family: value.family, sort: value.sort, descending: DOWN.has(value.sort) ? "1" : "",
      duplicates: value.duplicates ? "1" : "", offset, limit,
    }),
    card: cardOf(() => all.load()),
    ontotal: (answer) => {
      count.textContent = plural(answer.total, "adapter");
      body.dataset.total = answer.total;
      draw(answer);
    },
    onerror: fail,
  });
  function draw(answer) {
    fill(families, el("option", { value: "" }, "All families"), answer.families.map((one) => el("option", { value: one.name }, `${one.name ?? "unknown"} (${one.count})`)));
    families.value = value.family;
    if (answer.total <= 2 && !filtered()) fill(extra, welcome(about));
    else if (answer.total) fill(extra);
    else fill(extra, empty("Nothing matches",
      value.duplicates && !value.words && !value.family ? "No two adapters here are copies of each other." : "Try fewer words, or all families.",
      el("button", { onclick: reset }, "Show everything")));
  }
  function reset() {
    Object.assign(value, FIRST);
    search.value = "";
    duplicates.checked = false;
    keep();
    all.load();
  }
  function change(word, next) {
    value[word] = next;
    keep();
    scrollTo(0, 0);
    all.load();
  }
  const extra = el("div");
  root.append(
    el("div.toolbar", {}, search, families, sort, el("label.check", {}, duplicates, "Only duplicates"), el("span.grow"), count,
      el("button.quiet", { onclick: scan }, "Scan"),
      el("button", { onclick: () => addFolder(about) }, icon("folder"), "Add folder")),
    body);
  body.append(all.node, extra);
  all.load();
  if (query.has("search")) search.focus();
  const end = onLibrary(later(() => all.load(), 400));
  return () => {
    end();
    all.stop();
  };
}
