// One job as a block: what it does, how far it is, what came out.

import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { ACTIVE, again, forget, job, onChange, start, stop } from "./jobs.js";
import { iconButton } from "./parts.js";
import { copy, fail, failure, notes } from "./toast.js";
import { waysOn } from "./ways.js";
import { ago, base, number, percent, seconds } from "./words.js";

const STATES = {
  waiting: "Waiting", running: "Running", done: "Done", failed: "Failed",
  cancelled: "Cancelled", stopped: "Stopped and kept", lost: "Interrupted",
};

/** Return the share of a job that is done, or null. */
export function share(progress) {
  return progress?.total ? Math.min(1, progress.done / progress.total) : null;
}

function bar(one) {
  const done = share(one.progress);
  const inner = el("div.bar-fill");
  if (done !== null) inner.style.width = `${done * 100}%`;
  return el(`div.bar${done === null ? ".unknown" : ""}`, {
    role: "progressbar", "aria-label": one.title, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": done === null ? null : Math.round(done * 100),
  }, inner);
}

function said(one) {
  const { progress } = one;
  if (one.state === "waiting") return "waits for the jobs before it";
  if (!progress) return "starting";
  const count = progress.total ? `${progress.done} of ${progress.total} ${progress.unit ?? ""}` : "";
  return [progress.task, progress.said, count].filter(Boolean).join(" · ");
}

const OF_CHECKPOINT = { Inspect: "inspect?file", Verify: "do/verify?file", Preview: "do/preview?base" };

/** Return links to what can be done next with an output. */
function onward(one, path) {
  const links = ["bake", "merge", "unbake"].includes(one.verb)
    ? Object.entries(OF_CHECKPOINT).map(([label, view]) => ({ label, href: `#/${view}=${encodeURIComponent(path)}` }))
    : one.values?.to === "peft" || /\.(safetensors|gguf)$/i.test(path) ? waysOn(path).slice(0, 4) : []; // a folder has no ending
  return links.map(({ label, href }) => el("a", { href }, label));
}

function outputs(one) {
  return el("ul.outputs", {}, one.outputs.map((path) => el("li", {}, icon("file"), el("span.path", { title: path }, base(path)),
    onward(one, path), el("button.link", { onclick: () => copy(path, "Path") }, "Copy path"))));
}

function buttons(one, here, started) {
  const train = one.verb === "train";
  const found = [];
  if (ACTIVE.has(one.state)) {
    found.push(el("button", { onclick: () => stop(one.id) }, icon("stop"),
      train && one.state === "running" ? "Stop and keep" : "Cancel"));
  } else {
    if (one.state !== "done" && !badName(one)) {
      found.push(el("button", { onclick: () => again(one.id).then((answer) => answer && started(answer.id)) }, icon("play"), train ? "Resume" : "Run again"));
    }
    if (train && !here) found.push(el("a.button", { href: `#/train?job=${one.id}` }, "Loss and samples"));
    if (!here) found.push(iconButton("close", `Remove ${one.title} from the history`, () => forget(one.id)));
  }
  return found;
}

const exists = (one) => one.error && one.values && /\bexists\b/.test(one.error.text ?? "");
/** Return whether a job fails each time under this name: then another is wanted, or to replace what is there. */
const badName = (one) => exists(one) || (one.values && one.error?.advises?.includes("output"));

function hintOf(one) {
  if (!badName(one)) return one.error.hint;
  return exists(one) ? "Replace it, or type another name." : "Type another name.";
}

function replacing(one, started) {
  if (!exists(one)) return null;
  return el("button", { onclick: () => start({ verb: one.verb, values: { ...one.values, force: true } }).then(({ id }) => (started(id), forget(one.id)), fail) }, "Replace it");
}

function lines({ events }) {
  const of = (kind) => events.filter((event) => event.kind === kind).map((event) => event.text);
  return [notes("warn", of("warning")), notes("plain", of("note"))];
}

function time(one) {
  if (one.started && one.ended) return `${seconds(one.ended - one.started)} · ${ago(one.ended)}`;
  return ago(one.started ?? one.created);
}

/** Return a line for a job that had nothing to write; null for others. */
const nothingWritten = ({ verb, state, result }) =>
  verb === "heal" && state === "done" && result?.repairs?.length === 0 ? el("p", {}, "There was nothing to repair, so no file was written.") : null;

/** Return the accuracy of what a job made, in the words of the command line; null where it measures none. */
function accuracy({ verb, result }) {
  const { survived, norm_kept: kept, relative_error: error, dry_run: dry } = result ?? {};
  if (verb === "train" || dry || error == null) return null;
  const text = survived != null ? `${percent(survived, 4)} of the change kept after rounding, relative error ${number(error)}`
    : error === 0 ? "exact" : `relative error ${number(error, 4)}${kept == null ? "" : `, ${percent(kept)} of the norm kept`}`;
  return el("p.small", {}, `Accuracy: ${text}`);
}

/** Return the block of a job that is not drawn again by itself; `started` is told of the one that follows it. */
export function jobBlock(one, { quiet = false, here = false, started = () => {} } = {}) {
  const running = ACTIVE.has(one.state);
  return el(`article.job.${one.state}`, { "data-job": one.id, "data-state": one.state },
    el("header.row", {},
      el("span.state", {}, STATES[one.state]),
      el("h3", {}, one.title),
      el("span.soft.grow", {}, time(one)),
      buttons(one, here, started)),
    running ? [one.state === "running" ? bar(one) : null, el("p.soft.small", { "aria-live": "off" }, said(one))] : null,
    one.error ? failure({ message: one.error.text, hint: hintOf(one) }) : null,
    replacing(one, started),
    lines(one),
    accuracy(one),
    one.outputs.length ? outputs(one) : nothingWritten(one),
    quiet || !one.command ? null
      : el("details", {}, el("summary", {}, "Command"), el("pre.code", {}, one.command)));
}

/** Return a place that always shows one job; `show(id)` chooses it, `stop` ends listening. */
export function jobPlace(ended = () => {}) {
  const node = el("div.job-place", { "aria-live": "polite" });
  let id = null;
  let told = null;
  const draw = () => {
    const one = job(id);
    if (!one) return;
    fill(node, jobBlock(one, { quiet: true, started: show }));
    if (!ACTIVE.has(one.state) && told !== id) {
      told = id;
      ended(one);
    }
  };
  const end = onChange((which) => (which === null || which === id) && draw());
  function show(next) {
    id = next;
    told = null;
    draw();
  }
  return { node, show, stop: end };
}
