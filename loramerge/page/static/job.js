// One job as a block: what it does, how far it is, what came out.

import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { ACTIVE, again, forget, job, onChange, start, stop } from "./jobs.js";
import { copy, fail, failure, notes } from "./toast.js";
import { ago, base, seconds } from "./words.js";

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

/** What is done with an adapter: words of a link → address up to the name. */
export const OF_ADAPTER = { Inspect: "inspect?file", "Add to mix": "mix?add", Resize: "resize?file", Bake: "bake?file" };
const OF_CHECKPOINT = { Inspect: "inspect?file", Verify: "do/verify?file", Preview: "do/preview?base" };

/** Return what can be done next with an output, by the words of its link. */
function onward(one, path) {
  if (["bake", "merge", "unbake"].includes(one.verb)) return OF_CHECKPOINT;
  const folder = one.values?.to === "peft"; // that of an adapter, which has no ending
  return folder || /\.(safetensors|gguf)$/i.test(path) ? OF_ADAPTER : {};
}

function outputs(one) {
  return el("ul.outputs", {}, (one.outputs ?? []).map((path) => {
    return el("li", {}, icon("file"), el("span.path", { title: path }, base(path)),
      Object.entries(onward(one, path)).map(([text, view]) => el("a", { href: `#/${view}=${encodeURIComponent(path)}` }, text)),
      el("button.link", { onclick: () => copy(path, "Path") }, "Copy path"));
  }));
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
    if (!here) found.push(el("button.icon-only", { "aria-label": `Remove ${one.title} from the history`, onclick: () => forget(one.id) }, icon("close")));
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

function lines(one) {
  const events = one.events ?? [];
  const warnings = events.filter((event) => event.kind === "warning").map((event) => event.text);
  const plain = events.filter((event) => event.kind === "note").map((event) => event.text);
  return [...notes("warn", warnings), ...notes("plain", plain)];
}

function time(one) {
  if (one.started && one.ended) {
    const [from, to] = [one.started, one.ended].map((at) => (typeof at === "number" ? at : Date.parse(at) / 1000));
    return `${seconds(to - from)} · ${ago(one.ended)}`;
  }
  return ago(one.started ?? one.created);
}

/** Return the block of a job that is not drawn again by itself; `started` is told of the one that follows it. */
export function jobBlock(one, { quiet = false, here = false, started = () => {} } = {}) {
  const running = ACTIVE.has(one.state);
  return el(`article.job.${one.state}`, { "data-job": one.id, "data-state": one.state },
    el("header.row", {},
      el("span.state", {}, STATES[one.state] ?? one.state),
      el("h3", {}, one.title ?? one.verb ?? "Job"),
      el("span.soft.grow", {}, time(one)),
      buttons(one, here, started)),
    running ? [one.state === "running" ? bar(one) : null, el("p.soft.small", { "aria-live": "off" }, said(one))] : null,
    one.error ? failure({ message: one.error.text ?? String(one.error), hint: hintOf(one) }) : null,
    replacing(one, started),
    lines(one),
    one.outputs?.length ? outputs(one) : null,
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
