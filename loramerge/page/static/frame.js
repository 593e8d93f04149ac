// What is around every view: navigation, the jobs that run, light and dark.

import { dialog } from "./dialog.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { share } from "./job.js";
import { active, onChange, onConnection } from "./jobs.js";
import { iconButton } from "./parts.js";
import { FOOT, ROUTES, describe, others } from "./routes.js";
import { CARD } from "./stack.js";
import { isDark, toggle } from "./theme.js";
import { placeFor } from "./ways.js";
import { plural } from "./words.js";

/** Return a link of the navigation; a card may be dropped on one that takes a file. */
function entry(name, route) {
  const link = el("a.nav-link", { href: `#/${name}`, "data-route": name }, icon(route.icon), el("span", {}, route.title));
  if (!placeFor(name, "")) return link;
  link.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes(CARD)) return;
    event.preventDefault();
    link.classList.add("over");
  });
  link.addEventListener("dragleave", () => link.classList.remove("over"));
  link.addEventListener("drop", (event) => {
    event.preventDefault();
    link.classList.remove("over");
    const { reference } = JSON.parse(event.dataTransfer.getData(CARD));
    location.hash = placeFor(name, reference);
  });
  return link;
}

function groups(verbs) {
  const more = others(verbs).map((verb) => [`do/${verb}`, describe({ name: "do", verb }, verbs)]);
  const found = new Map();
  for (const [name, route] of [...Object.entries(ROUTES), ...more]) {
    if (!found.has(route.group)) found.set(route.group, []);
    found.get(route.group).push(entry(name, route));
  }
  return [...found].map(([title, links]) => {
    if (title === "More") return el("details.nav-group", {}, el("summary", {}, "More tools"), links);
    return el("div.nav-group", {}, title ? el("p.nav-title", {}, title) : null, links);
  });
}

function indicator() {
  const ring = el("span.ring", { "aria-hidden": "true" });
  const text = el("span.indicator-text");
  const node = el("a.indicator", { href: "#/jobs", "data-jobs": 0 }, ring, text);
  const draw = () => {
    const running = active();
    const first = running.find((one) => one.state === "running");
    const done = first ? share(first.progress) : null;
    node.dataset.jobs = running.length;
    node.classList.toggle("active", running.length > 0);
    ring.classList.toggle("unknown", running.length > 0 && done === null);
    ring.style.setProperty("--done", `${(done ?? 0.25) * 360}deg`);
    text.textContent = running.length ? `${plural(running.length, "job")}${done === null ? "" : ` · ${Math.round(done * 100)} %`}` : "Nothing running";
  };
  onChange(draw);
  draw();
  return node;
}

function themeButton() {
  const button = el("button.icon-only.theme", { onclick: () => (toggle(), draw()) });
  const draw = () => {
    const name = isDark() ? "Light colours" : "Dark colours";
    button.setAttribute("aria-label", name);
    button.title = name;
    fill(button, icon(isDark() ? "sun" : "moon"));
  };
  draw();
  return button;
}

function lostNotice() {
  const node = el("div.lost", { role: "alert", hidden: true }, icon("warn"),
    "The server does not answer. If you stopped it, start `loramerge ui` again; nothing here is lost.");
  let timer = 0;
  onConnection((is) => {
    clearTimeout(timer);
    if (is) node.hidden = true;
    else timer = setTimeout(() => (node.hidden = false), 1500);
  });
  return node;
}

/** Build the frame into the page; returns the places of title, content and the function that marks a route. */
export function frame(place, { about, verbs, help }) {
  const title = el("h1", { tabindex: "-1", id: "title" });
  const content = el("div.view");
  content.id = "view";
  const openMenu = () => {
    const opened = dialog("All tools", el("nav.sheet", { "aria-label": "All tools", onclick: (event) => event.target.closest("a") && opened.close() }, groups(verbs)));
  };
  const side = el("nav.side", { "aria-label": "Views" },
    el("a.brand", { href: "#/library", "aria-label": "loramerge, to the library" }, icon("mix"), el("span", {}, "loramerge")),
    groups(verbs), el("span.grow"),
    el("p.soft.small.version", {}, `Version ${about.version}`));
  const foot = el("nav.foot", { "aria-label": "Views" }, FOOT.map((name) => entry(name, ROUTES[name])),
    el("button.nav-link", { onclick: openMenu }, icon("tools"), el("span", {}, "All tools")));
  fill(place, side,
    el("div.page", {},
      el("header.top", {}, title, el("span.grow"), el("span.soft.small.folder", { title: about.folder }, el("bdi", { dir: "ltr" }, about.folder)), indicator(),
        iconButton("help", "Keyboard shortcuts", help, { title: "Keyboard shortcuts (?)" }, ".help-button"), themeButton()),
      lostNotice(),
      el("main", { id: "main", tabindex: "-1", "aria-labelledby": "title" }, content)),
    foot);
  const mark = (name) => {
    for (const link of place.querySelectorAll(".nav-link[data-route]")) {
      if (link.dataset.route === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const inMore = place.querySelector("details.nav-group [aria-current]");
    if (inMore) inMore.closest("details").open = true;
  };
  return { title, content, mark };
}
