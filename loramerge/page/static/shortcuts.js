// Keys that work everywhere, and the list of them.

import { dialog } from "./dialog.js";
import { el } from "./dom.js";
import { ROUTES } from "./routes.js";
import { toggle } from "./theme.js";

const typing = (target) => target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]");

const KEYS = [
  ["?", "Show this list"],
  ["/", "Search"],
  ["Ctrl Enter", "Run the panel's action"],
  ["Escape", "Close a dialog or a menu, leave a field"],
  ["↑ ↓ on a handle", "Move an adapter up or down in the stack"],
  ["\\", "Light or dark"],
];

/** Show the list of shortcuts. */
export function help() {
  const line = ([keys, text]) => el("tr", {}, el("th", { scope: "row" }, keys.split(" ").map((key) => el("kbd", {}, key))), el("td", {}, text));
  const goes = Object.values(ROUTES).map((route) => [`g ${route.key}`, `Go to ${route.title}`]);
  dialog("Keyboard shortcuts", el("div.keys", {}, el("table", {}, el("tbody", {}, KEYS.map(line))), el("table", {}, el("tbody", {}, goes.map(line)))), { wide: true });
}

function search() {
  const box = document.querySelector("dialog[open] input[type=search]") ?? document.querySelector("#view input[type=search]");
  if (box) {
    box.focus();
    box.select();
  } else location.hash = "#/library?search=1";
}

/** Begin to listen to keys. */
export function listen() {
  let going = 0;
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      document.querySelector("#view .action button.primary:not(:disabled)")?.click();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && typing(event.target) && !event.target.closest("dialog")) event.target.blur();
    if (typing(event.target) || event.target.closest?.("dialog, [popover]")) return;
    const known = { "?": help, "/": search, "\\": toggle }[event.key];
    if (known) {
      event.preventDefault();
      known();
    } else if (event.key === "g") going = Date.now();
    else if (Date.now() - going < 1200) {
      going = 0;
      const found = Object.entries(ROUTES).find(([, route]) => route.key === event.key);
      if (found) location.hash = `#/${found[0]}`;
    }
  });
}
