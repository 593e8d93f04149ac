// The plan of an action, which follows every change: ranks, size, how inputs relate, warnings.

import { live } from "./api.js";
import { el, fill } from "./dom.js";
import { ACTIVE, job, onChange } from "./jobs.js";
import { newest } from "./live.js";
import { facts } from "./parts.js";
import { failure, notes } from "./toast.js";
import { label, number, percent, plural, ranks, seconds, size, stem } from "./words.js";

function figures(found) {
  const most = found.at_most ? "≤ " : "";
  return facts([
    ["Modules", found.modules && found.modules.toLocaleString("en")],
    ["Rank", ranks(found.ranks) && most + ranks(found.ranks)],
    ["Size", found.size && most + size(found.size)],
    ["Memory", found.memory && size(found.memory)],
    ["Time", found.seconds && seconds(found.seconds)],
  ].filter(([, value]) => value));
}

function meter(name, value, text, { signed = false, mark = null } = {}) {
  const fillNode = el("div.meter-fill");
  const share = Math.min(1, Math.abs(value));
  fillNode.style.width = `${signed ? share * 50 : share * 100}%`;
  fillNode.style.left = signed ? (value < 0 ? `${50 - share * 50}%` : "50%") : "0";
  const at = mark === null ? null : el("div.meter-mark", { title: "unrelated adapters of these ranks" });
  if (at) at.style.left = `${Math.min(1, mark) * 100}%`;
  return el("div.meter-row", {}, el("span.meter-name", {}, name),
    el(`div.meter${signed ? ".signed" : ""}`, { "aria-hidden": "true" }, fillNode, at), el("span.meter-value", {}, text));
}

function verdict(pair) {
  if (pair.cosine > 0.5) return "They make much the same change: use smaller weights.";
  if (pair.cosine < -0.2) return "They partly cancel each other.";
  const chance = Math.max(pair.outputs_by_chance ?? 0, 0.01);
  if ((pair.outputs ?? 0) > 3 * chance + 0.1) return "Different changes in shared directions.";
  return "They hardly touch each other.";
}

function pairBlock(pair) {
  const shared = Math.max(pair.outputs ?? 0, pair.inputs ?? 0);
  return el("div.pair", {},
    el("p.pair-names", {}, pair.names.map(stem).join(" and ")),
    pair.cosine === null ? null : meter("Cosine", pair.cosine, number(pair.cosine, 2), { signed: true }),
    pair.outputs === null ? null : meter("Shared", shared, percent(shared, 2), { mark: Math.max(pair.outputs_by_chance ?? 0, pair.inputs_by_chance ?? 0) }),
    el("p.soft.small", {}, verdict(pair)));
}

function norms({ total, names }) {
  const most = Math.max(...total.inputs, total.result ?? 0) || 1;
  return el("div.norms", {}, el("p.pair-names", {}, "Norm of the change"),
    total.inputs.map((value, index) => meter(stem(names[index]), value / most, number(value))),
    total.result === null ? null : meter("Result", total.result / most, number(total.result)));
}

function related(relations) {
  if (!relations) return null;
  const { pairs } = relations;
  return el("div.relations", {}, pairs.slice(0, 6).map(pairBlock),
    pairs.length > 6 ? el("p.soft.small", {}, `and ${plural(pairs.length - 6, "more pair")}`) : null, norms(relations));
}

/** Return a plan as nodes. */
function planned(found, mend) {
  return [
    found.refused ? [failure({ message: found.refused }), mend(found.refused)] : null,
    notes("warn", found.warnings), figures(found), lost(found), related(found.relations), dryRun(found.dry_run),
    notes("plain", [...(found.remarks ?? []), found.unknown].filter(Boolean)),
  ];
}

/** Return what is lost: of a resize by its ranks, of a bake or a merge by rounding. */
function lost({ losses, survival }) {
  const from = survival ?? losses ?? {};
  const kept = from.kept ?? from.norm_kept;
  if (kept == null) return null;
  const storages = from.storages?.length > 1 ? from.storages : [];
  return el("div.norms", {}, el("p.pair-names", {}, survival ? "What rounding keeps" : "What is kept"),
    meter("Kept", kept, percent(kept, 4)),
    storages.map((one) => meter(one.storage, one.kept, percent(one.kept))),
    from.relative_error > 0 ? meter("Error", Math.min(1, from.relative_error), percent(from.relative_error)) : null,
    from.change ? el("p.soft.small", {}, `Size of the change: ${percent(from.change)} of the weights' norm`) : null,
    from.worst ? el("p.soft.small.breaks", {}, `Worst module: ${from.worst.module}: relative error ${number(from.worst.relative_error)}`) : null,
    from.estimated ? el("p.soft.small", {}, `Estimated ${from.estimated}.`) : null,
    notes("warn", from.warnings));
}

/** Return what a dry run of a training found. */
function dryRun(found) {
  if (!found) return null;
  const simple = Object.entries(found).filter(([, value]) => ["number", "string"].includes(typeof value));
  return el("details.more", {}, el("summary", {}, "What the run would do"),
    facts(simple.map(([name, value]) => [label(name), typeof value === "number" ? (/memory/.test(name) ? size(value) : /seconds/.test(name) ? seconds(value) : number(value, 4)) : value])));
}

/** Return `{node, ask, stop}`: a panel that shows the newest plan; `refused(is)` is told whether that is an error, `mend(error)` returns what mends it. */
export function planPanel(verb, { title = "Plan", refused = () => {}, mend = () => null } = {}) {
  const nothing = () => el("p.soft", {}, "The plan appears once there is something to plan.");
  const body = el("div.plan-body", {}, nothing());
  const node = el("section.panel.plan", { "aria-label": title, "data-state": "empty" }, el("h2", {}, title), body);
  let last = null;
  let again = null; // what was refused, and may be right once a job has ended
  const queue = newest(({ values, whole }) => live("plan", { verb, values, relations: whole }, `plan-${verb}`), {
    busy: (is) => {
      node.classList.toggle("busy", is);
      if (is && node.dataset.state === "empty") fill(body, el("p.soft", {}, "Working it out…"));
      if (is) node.dataset.state = "busy";
    },
    done: (found, what) => {
      node.dataset.state = "shown";
      // figures that need the weights stay until the next ones come
      if (what.whole) last = found;
      else for (const name of ["relations", "losses", "survival", "unknown", "dry_run"]) found[name] ??= last?.[name];
      fill(body, planned(found, mend));
      refused(Boolean(found.refused));
      again = found.refused ? what : null;
    },
    failed: (error) => {
      node.dataset.state = "failed";
      fill(body, failure(error));
      refused(false); // nobody knows
    },
  });
  const listening = onChange((which) => again && job(which) && !ACTIVE.has(job(which).state) && queue.ask(again));
  return {
    node,
    ask(values, whole = true) {
      again = null;
      if (values) return queue.ask({ values, whole });
      last = null;
      refused(false);
      node.dataset.state = "empty";
      return fill(body, nothing());
    },
    stop: () => (listening(), queue.stop()),
  };
}
