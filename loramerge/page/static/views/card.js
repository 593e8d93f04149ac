// The details of one card: all that is known, and one's own tags, note and rating.

import { get, link, post } from "../api.js";
import { dialog } from "../dialog.js";
import { el, fill, fresh } from "../dom.js";
import { waysOn } from "../ways.js";
import { facts } from "../parts.js";
import { fail, failure, say } from "../toast.js";
import { label, said, size, stem } from "../words.js";

const HIDDEN = new Set(["id", "picture", "problems", "tags", "own_tags", "note", "rating", "name", "reference", "ranks", "what", "group", "copies", "sidecars"]);

function shown(name, value) {
  if (!value || (name === "paths" && value.length === 1) || name === "indexed") return null; // the path says it
  if (name === "size" || name === "bytes") return size(value);
  if (name === "modified") return new Date(value * 1000).toLocaleString();
  const plain = typeof value !== "object" || (Array.isArray(value) && value.length && value.every((one) => typeof one !== "object"));
  return plain ? said(value) : null;
}

function own(card, close, again) {
  const id = fresh("own");
  const tags = el("input", { id: `${id}-tags`, value: card.own_tags.join(", "), autocomplete: "off" });
  const note = el("textarea", { id: `${id}-note`, rows: 3, value: card.note ?? "" });
  let rating = card.rating ?? 0;
  const stars = el("div.rating", { role: "radiogroup", "aria-label": "Rating" });
  const draw = () => fill(stars, [1, 2, 3, 4, 5].map((count) =>
    el(`button.star${count <= rating ? ".on" : ""}`, { role: "radio", "aria-checked": String(count === rating), "aria-label": `${count} of 5`, onclick: () => {
      rating = rating === count ? 0 : count;
      draw();
    } }, count <= rating ? "★" : "☆")));
  draw();
  return el("form.form", { onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post(`/api/library/${card.id}`, { tags: tags.value.split(",").map((one) => one.trim()).filter(Boolean), note: note.value, rating: rating || null });
      say("Saved");
      close();
      again();
    } catch (error) {
      fail(error);
    }
  } },
  el("div.field", {}, el("span.label", {}, "Rating"), stars),
  el("div.field", {}, el("label", { for: `${id}-tags` }, "Tags"), tags, el("p.help", {}, "With commas between them.")),
  el("div.field", {}, el("label", { for: `${id}-note` }, "Note"), note),
  el("div.row.end", {}, el("button.primary", { type: "submit" }, "Save")));
}

/** Show the details of a card; `again` is called when something was saved. */
export function details(card, again) {
  const known = el("div");
  const opened = dialog(stem(card.name), el("div.details-grid", {},
    el("div", {}, card.picture ? el("img.cover.big", { src: link(`/picture/library/${card.id}`), alt: `Preview of ${card.name}` }) : null,
      el("div.row.wrap", {},
        waysOn(card.reference).slice(0, 4).map(({ label: text, view, href }) =>
          el(`a.button${view === "mix" ? ".primary" : ""}`, { href, onclick: () => opened.close() }, text))),
      card.problems.map((one) => el(`p.note.${one.severity === "error" ? "bad" : "warn"}`, {}, one.text)),
      known),
    own(card, () => opened.close(), again)), { wide: true });
  const list = (all) => facts(Object.entries(all).filter(([name]) => !HIDDEN.has(name)).map(([name, value]) => [label(name), shown(name, value)]));
  fill(known, list(card));
  get(`/api/library/${card.id}`).then((all) => fill(known, list({ ...card, ...all })), (error) => known.append(failure(error)));
}
