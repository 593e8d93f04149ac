// A dialog to choose an adapter, a base, a file or a folder: from the library, from what is registered, or by browsing.

import { get, upload } from "./api.js";
import { dialog } from "./dialog.js";
import { el, fill, later } from "./dom.js";
import { icon } from "./icons.js";
import { failure, fail } from "./toast.js";
import { base, cardLine, size, stem } from "./words.js";

const KINDS = { adapters: "adapters", files: "adapters", models: "bases", bases: "bases", folders: "folders", recipes: "recipes", images: "images" };
const TITLES = {
  adapters: "Choose an adapter", bases: "Choose a base model", models: "Choose a model", files: "Choose a file",
  folders: "Choose a folder", recipes: "Open a recipe", images: "Choose a picture",
};

function row(name, detail, symbol, act, title) {
  return el("li", {}, el("button.pick", { onclick: act, title }, icon(symbol),
    el("span.pick-name", {}, name), el("span.soft.small", {}, detail)));
}

/** Return a field that fills a list with what `draw` makes of the adapters that match it. */
export function librarySearch(list, query, draw) {
  const ask = later(async () => {
    try {
      fill(list, draw(await get("/api/library", { words: search.value, ...query })));
    } catch (error) {
      fill(list, el("li", {}, failure(error)));
    }
  }, 100);
  const search = el("input", { type: "search", placeholder: "Search the library", "aria-label": "Search the library", oninput: ask });
  ask();
  return search;
}

function library(choose) {
  const list = el("ul.pick-list");
  const search = librarySearch(list, { limit: 50, sort: "name" }, ({ cards }) => (cards.length
    ? cards.map((card) => row(stem(card.name), cardLine(card, size(card.size)), "mix", () => choose(card), card.path))
    : el("li.soft.pad", {}, "No adapter matches. Browse the files, or add a folder to the library.")));
  search.autofocus = true;
  return el("div", {}, search, list);
}

function bases(about, choose) {
  return el("ul.pick-list", {}, about.bases.map((one) =>
    row(one.name, [one.family, one.shipped ? "comes with loramerge" : ""].filter(Boolean).join(" · "), "bake",
      () => choose({ reference: one.name, name: one.name, family: one.family }), one.path)));
}

function browser(kind, choose) {
  const node = el("div");
  async function open(folder) {
    try {
      const found = await get("/api/files", { folder, kind });
      const up = found.parent ? row("..", "", "up", () => open(found.parent), found.parent) : null;
      const folders = found.folders.map((one) => row(one.name, "", "folder", () => open(one.path), one.path));
      const files = kind === "folders" ? [] : found.files.map((one) =>
        row(one.name, size(one.size), "file", () => choose(one), one.path));
      const places = found.places.map((place) =>
        el("button.quiet", { onclick: () => open(place), title: place }, icon("folder"), base(place) || place));
      fill(node, places.length > 1 ? el("div.row.places", {}, places) : null,
        el("p.path.soft.small", {}, found.folder),
        el("ul.pick-list", {}, up, folders, files, folders.length || files.length || kind === "folders" ? null : el("li.soft.pad", {}, "Nothing that fits is here.")),
        kind === "folders" ? el("div.row.end", {}, el("button.primary", { onclick: () =>
          choose({ reference: found.folder, path: found.folder, name: base(found.folder) }) }, "Use this folder")) : null);
    } catch (error) {
      fill(node, failure(error), el("button", { onclick: () => open("") }, "Back to the current folder"));
    }
  }
  open("");
  return node;
}

function uploader(choose) {
  const input = el("input.away", { type: "file", accept: ".safetensors,.yaml,.yml", tabindex: "-1", onchange: async () => {
    for (const file of input.files) {
      try {
        choose({ name: file.name, ...(await upload(file)) });
      } catch (error) {
        fail(error);
      }
    }
  } });
  return [input, el("button", { onclick: () => input.click() }, icon("extract"), "Upload a file")];
}

/**
 * Open the dialog. Resolves to a list of `{reference, name, family}`, or null.
 *
 * @param {{refers: string, about: object, title?: string}} options
 */
export function pick({ refers, about, title }) {
  return new Promise((resolve) => {
    let answer = null;
    const choose = (one) => {
      answer = [one];
      opened.close();
    };
    const pages = {
      ...(["adapters", "files", "models"].includes(refers) ? { Library: () => library(choose) } : {}),
      ...(["bases", "models", "files"].includes(refers) ? { Bases: () => bases(about, choose) } : {}),
      Files: () => browser(KINDS[refers] ?? refers, choose),
    };
    const names = Object.keys(pages);
    if (refers === "bases" || refers === "models") names.sort((a, b) => (b === "Bases") - (a === "Bases"));
    const body = el("div.pick-body");
    const show = (name) => {
      for (const one of tabs) one.setAttribute("aria-selected", String(one.textContent === name));
      fill(body, pages[name]());
    };
    const tabs = names.map((name) => el("button.tab", { role: "tab", onclick: () => show(name) }, name));
    const opened = dialog(title ?? TITLES[refers] ?? "Choose", [
      el("div.row", {}, names.length > 1 ? el("div.tabs", { role: "tablist", "aria-label": "Where from" }, tabs) : null,
        el("span.grow"), ["folders", "images"].includes(refers) ? null : uploader(choose)),
      body,
    ], { wide: true, onclose: () => resolve(answer) });
    show(names[0]);
  });
}
