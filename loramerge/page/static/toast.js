// Short messages in the corner; errors stay until they are closed.

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { Replaced } from "./api.js";
import { iconButton } from "./parts.js";

const place = () => document.getElementById("toasts");
const KEPT = 4;

function show(kind, text, hint, action) {
  const close = () => node.remove();
  const node = el(`div.toast.${kind}`, { role: kind === "bad" ? "alert" : null },
    el("div.toast-text", {}, el("p", {}, text), hint ? el("p.soft", {}, hint) : null),
    action ? el("button.quiet", { onclick: () => (close(), action.act()) }, action.label) : null,
    iconButton("close", "Close this message", close));
  const same = [...place().children].find((one) => one.textContent === node.textContent);
  same?.remove();
  place().append(node);
  while (place().children.length > KEPT) place().firstElementChild.remove();
  if (kind !== "bad") setTimeout(close, action ? 9000 : 5000);
}

/** Say that something is done. `action` is `{label, act}`. */
export const say = (text, action) => show("good", text, null, action);

/** Show an error. Requests that a newer one replaced are no error. */
export function fail(error) {
  if (error instanceof Replaced) return;
  show("bad", error.message, error.hint);
}

/** Return an error as a block that stands where the result would. */
export const failure = (error) =>
  el("div.note.bad", { role: "alert" }, icon("warn"),
    el("div", {}, el("p", {}, error.message), error.hint ? el("p.soft", {}, error.hint) : null));

/** Return lines of warnings and remarks as blocks. */
export const notes = (kind, lines) =>
  (lines ?? []).map((line) => el(`div.note.${kind}`, {}, icon(kind === "plain" ? "check" : "warn"), el("p", {}, line)));

/** Copy a text, and say so. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea.away", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied`);
}
