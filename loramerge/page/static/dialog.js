// Dialogs and menus of the platform itself: Escape closes them, and focus returns to where it was.

import { el, fresh, spoken } from "./dom.js";
import { icon } from "./icons.js";
import { iconButton } from "./parts.js";

/** Open a dialog with a title; `close` ends it. Returns `{close, node}`. */
export function dialog(title, content, { wide = false, onclose = () => {} } = {}) {
  const id = fresh("dialog");
  const before = document.activeElement;
  const close = () => node.close();
  const node = el(`dialog.dialog${wide ? ".wide" : ""}`, { "aria-labelledby": id },
    el("header", {}, el("h2", { id }, title),
      iconButton("close", "Close", close)),
    el("div.dialog-body", {}, content));
  node.addEventListener("click", (event) => {
    if (event.target === node) close();
  });
  node.addEventListener("close", () => {
    node.remove();
    if (before?.isConnected) before.focus();
    onclose();
  });
  document.body.append(node);
  node.showModal();
  return { close, node };
}

/** Ask for one line of text. Resolves to the text, or null. */
export function asked(title, { label, value = "", verb = "Save", help = "" }) {
  return new Promise((resolve) => {
    let answer = null;
    const id = fresh("asked");
    const input = el("input", { id, value, autocomplete: "off", spellcheck: "false" });
    const form = el("form", { onsubmit: (event) => {
      event.preventDefault();
      answer = input.value.trim() || null;
      opened.close();
    } }, el("label", { for: id }, label), input, help ? el("p.help", {}, spoken(help)) : null,
    el("div.row.end", {}, el("button.primary", { type: "submit" }, verb)));
    const opened = dialog(title, form, { onclose: () => resolve(answer) });
    input.select();
  });
}

/** Open a menu under a button. `items` are `{label, act, icon}`, or null for a line between. */
export function menu(button, items) {
  const close = () => list.remove();
  const choose = (item) => () => {
    close();
    item.act();
  };
  const list = el("div.menu", { role: "menu", popover: "auto" }, items.map((item) =>
    item
      ? el("button", { role: "menuitem", tabindex: "-1", onclick: choose(item) }, icon(item.icon), item.label)
      : el("hr")));
  button.after(list);
  list.addEventListener("toggle", (event) => event.newState === "closed" && setTimeout(close));
  list.addEventListener("keydown", (event) => {
    const all = [...list.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
    } else if (event.key === "Tab") close();
    else if (event.key === "Escape") button.focus();
  });
  list.showPopover();
  const at = button.getBoundingClientRect();
  const own = list.getBoundingClientRect();
  list.style.left = `${Math.max(8, Math.min(at.right - own.width, innerWidth - own.width - 8))}px`;
  list.style.top = `${at.bottom + own.height + 8 > innerHeight ? Math.max(8, at.top - own.height - 4) : at.bottom + 4}px`;
  list.querySelector("button")?.focus();
}
