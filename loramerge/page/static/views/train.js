// Train: what matters first, the dry run's findings, then loss and samples as they grow.

import { actionPanel } from "../action.js";
import { get, link } from "../api.js";
import { chart, smoothed } from "../chart.js";
import { el, fill, later } from "../dom.js";
import { form, missing, wire } from "../form.js";
import { jobBlock } from "../job.js";
import { ACTIVE, job, jobs, onChange } from "../jobs.js";
import { columns, panel } from "../parts.js";
import { planPanel } from "../plan.js";
import { remembered } from "../store.js";
import { failure, notes } from "../toast.js";
import { number } from "../words.js";
import { lead } from "./verb.js";

const EVERY = 2000; // milliseconds between questions while a run goes on

function lossChart(found) {
  const { losses } = found;
  if (losses.length < 2) return el("p.soft", {}, "The first losses appear in a moment.");
  const lines = [
    { points: losses, kind: "faint", name: "Loss of each step" },
    { points: smoothed(losses), kind: "main", name: "Its trend" },
    ...(found.validation.length ? [{ points: found.validation, kind: "other", name: "Validation", dots: true }] : []),
  ];
  return chart({ lines, xName: "Step", yName: "Loss", label: "Loss of the training", zero: true, xText: (value) => number(value, 6) }).node;
}

/** Return a panel that follows one training run: `{node, show, stop}`. */
function watching() {
  const head = el("div");
  const body = el("div");
  const node = el("section.panel.watching", { "aria-label": "Training run", hidden: true }, el("h2", {}, "Run"), head, body);
  let id = null;
  let timer = 0;
  let stopped = false;
  async function ask() {
    clearTimeout(timer);
    if (stopped || !id) return;
    const mine = id;
    try {
      const found = await get(`/api/jobs/${id}/training`);
      if (stopped || mine !== id) return;
      fill(body, lossChart(found),
        found.samples ? el("figure.samples", {}, el("figcaption.small.soft", {}, "Samples; the newest are last"),
          el("img", { src: link(`/picture/${found.samples}.png`), alt: "Samples of the training run" })) : null,
        notes("plain", found.findings));
    } catch (error) {
      if (error.status !== 404) fill(body, failure(error));
    }
    if (ACTIVE.has(job(id)?.state)) timer = setTimeout(ask, EVERY);
  }
  const draw = () => {
    const one = job(id);
    if (one) fill(head, jobBlock(one, { quiet: true, here: true, started: show }));
  };
  const end = onChange((which) => {
    if (which !== null && which !== id) return;
    draw();
    if (!ACTIVE.has(job(id)?.state)) ask();
  });
  function show(next) {
    id = next;
    node.hidden = false;
    draw();
    ask();
  }
  return {
    node,
    show,
    stop() {
      stopped = true;
      clearTimeout(timer);
      end();
    },
  };
}

export function show(root, { about, verbs, query }) {
  const info = verbs.train;
  const { value, keep } = remembered("train", { values: { base: "tiny" }, output: "", more: false });
  const values = () => (missing("train", info, value.values).length ? null : wire("train", info, value.values, about));
  const plan = planPanel("train", { title: "Check before training", refused: (is) => end.hold(is) });
  const watch = watching();
  const end = actionPanel("train", values, {
    label: "Start training", missing: "Choose a base model and a folder of images.", gives: info.gives, kept: value, keep,
    started: (id) => {
      watch.show(id);
      scrollTo({ top: 0, behavior: "smooth" });
    },
  });
  const check = later(() => plan.ask(values()), 400);
  const settings = form({ verb: "train", info, values: value.values, about, kept: value, onchange: () => {
    keep();
    end.update();
    check();
  } });
  root.append(lead("train", info), columns([watch.node, panel("Settings", settings.node), end.node], [plan.node]));
  const asked = query.get("job") ?? jobs().find((one) => one.verb === "train" && ACTIVE.has(one.state))?.id;
  if (asked) watch.show(asked);
  plan.ask(values());
  return () => {
    check.cancel();
    watch.stop();
    plan.stop();
    end.stop();
  };
}
