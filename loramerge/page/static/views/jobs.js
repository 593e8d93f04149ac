// The queue: what runs, what waits, what was.

import { el, fill, later } from "../dom.js";
import { jobBlock } from "../job.js";
import { ACTIVE, forget, jobs, onChange } from "../jobs.js";
import { empty } from "../parts.js";

export function show(root) {
  const now = el("section", { "aria-label": "Running and waiting" });
  const past = el("section", { "aria-label": "History" });
  const draw = () => {
    const all = jobs();
    const open = new Set([...root.querySelectorAll("details[open]")].map((one) => one.closest("[data-job]")?.dataset.job));
    const running = all.filter((one) => ACTIVE.has(one.state));
    const done = all.filter((one) => !ACTIVE.has(one.state));
    fill(now, running.length ? [el("h2", {}, "Now"), running.map((one) => jobBlock(one))] : null);
    fill(past, done.length
      ? [el("div.row", {}, el("h2", {}, "History"), el("span.grow"), el("button.quiet", { onclick: () => done.forEach((one) => forget(one.id)) }, "Clear"))]
      : null, done.map((one) => jobBlock(one)),
    all.length ? null : empty("No jobs yet", "What you run is listed here, with its progress. It goes on when you close the page, and the list stays.",
      el("a.button.primary", { href: "#/mix" }, "Mix something")));
    for (const one of root.querySelectorAll("[data-job]")) if (open.has(one.dataset.job) && one.querySelector("details")) one.querySelector("details").open = true;
  };
  root.append(now, past);
  draw();
  return onChange(later(draw, 60));
}
