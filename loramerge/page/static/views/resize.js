// Resize: the curve of error against size, with a handle on it.

import { actionPanel } from "../action.js";
import { live } from "../api.js";
import { chart } from "../chart.js";
import { el, fill, fresh, later, svg } from "../dom.js";
import { form, wire } from "../form.js";
import { newest } from "../live.js";
import { columns, dragged, empty, panel, segments, table } from "../parts.js";
import { planPanel } from "../plan.js";
import { remembered } from "../store.js";
import { failure } from "../toast.js";
import { percent, size } from "../words.js";
import { lead } from "./verb.js";

const FIRST = { values: {}, output: "", by: "rank", place: null, more: false };
const WAYS = { rank: "One rank everywhere", size: "Best rank in each module" };

/** Return a size as `--max-size` takes it: whole bytes, so that the choice is exact. */
const asSize = (bytes) => `${Math.ceil(bytes)}B`;

function handle(drawn, points, index, choose, text) {
  const id = fresh("handle");
  const line = svg("line.handle-line", { y1: drawn.top, y2: drawn.bottom });
  const dot = svg("circle.handle-dot", { r: 8 });
  drawn.picture.append(line, dot);
  const range = el("input", { id, type: "range", min: 0, max: points.length - 1, step: 1, value: index });
  const said = el("output.handle-said", { for: id });
  const place = (at) => {
    const [bytes, error] = [points[at].size, points[at].relative_error];
    for (const name of ["x1", "x2"]) line.setAttribute(name, drawn.x(bytes));
    dot.setAttribute("cx", drawn.x(bytes));
    dot.setAttribute("cy", drawn.y(error));
    range.value = String(at);
    range.style.setProperty("--at", `${(100 * at) / Math.max(1, points.length - 1)}%`);
    range.setAttribute("aria-valuetext", text(points[at]));
    said.textContent = text(points[at]);
  };
  const to = (at) => {
    place(at);
    choose(at);
  };
  range.addEventListener("input", () => to(Number(range.value)));
  dragged(drawn.picture, (across) => {
    const bytes = drawn.back(across * drawn.wide);
    to(points.reduce((best, one, at) => (Math.abs(one.size - bytes) < Math.abs(points[best].size - bytes) ? at : best), 0));
  });
  place(index);
  return { node: el("div.handle", {}, el("label", { for: id }, "Smaller to larger"), range), said };
}

function worstTable(worst, open) {
  if (!worst?.length) return null;
  return el("details.more", { open }, el("summary", {}, "Modules that lose most"),
    table(["Module", "Rank", "Error"], worst.slice(0, 12).map((one) => [el("td.breaks", {}, one.module), one.rank ?? "", percent(one.relative_error)]), "table.numbers"));
}

export function show(root, { about, verbs, query }) {
  const info = verbs.resize;
  const { value, keep } = remembered("resize", FIRST);
  if (query.get("file")) {
    value.values = { ...value.values, adapter: query.get("file") };
    value.place = null;
    keep();
  }
  let found = null;
  const place = el("div.curve-place");
  const worst = el("div");
  const ready = () => value.values.adapter && Object.keys(value.values).some((word) => !["adapter", "to", "for", "dtype", "base"].includes(word));
  const values = () => (ready() ? wire("resize", info, value.values, about) : null);
  const plan = planPanel("resize", { refused: (is) => end.hold(is) });
  const end = actionPanel("resize", values, { label: "Resize", missing: "Choose an adapter, then a point on its curve.", gives: info.gives, kept: value, keep });
  const changed = later(() => {
    keep();
    end.update();
    plan.ask(values());
  }, 60);

  const points = () => (value.by === "rank" ? found.uniform : found.best) ?? [];
  const text = (one) => `${one.rank !== undefined && value.by === "rank" ? `rank ${one.rank}, ` : ""}${size(one.size)}, error ${percent(one.relative_error)}`;
  function choose(index) {
    const one = points()[index];
    value.place = index;
    delete value.values.rank;
    delete value.values.max_size;
    if (value.by === "rank") value.values.rank = one.rank;
    else value.values.max_size = one.max_size ?? asSize(one.size);
    changed();
    askWorst();
  }
  function draw() {
    const own = points();
    if (!own.length) return fill(place, el("p.soft", {}, "There is no curve for this file."));
    const index = Math.min(own.length - 1, Math.max(0, value.place ?? Math.floor((own.length - 1) / 2)));
    const pair = (all) => (all ?? []).map((one) => [one.size, one.relative_error]);
    const lines = [
      { points: pair(found.uniform), kind: value.by === "rank" ? "main" : "faint", name: WAYS.rank, dots: value.by === "rank" && own.length < 40 },
      { points: pair(found.best), kind: value.by === "rank" ? "faint" : "main", name: WAYS.size, dots: value.by !== "rank" && own.length < 40 },
    ].filter((line) => line.points.length);
    const drawn = chart({ lines, xName: "Size of the file", yName: "Relative error", xText: size, yText: (share) => percent(share, 2), label: "Error against size" });
    const ways = segments("How ranks are chosen", WAYS, value.by, (by) => {
      value.by = by;
      value.place = null;
      draw();
    });
    const hold = handle(drawn, own, index, choose, text);
    fill(place, el("div.row", {}, ways, el("span.grow"), hold.said), drawn.node, hold.node,
      el("p.soft.small", {}, `The file has ${size(found.size_before)} now. The error is the share of the change's norm that is lost.`), worst);
    if (value.place === null) choose(index);
    else askWorst();
    return undefined;
  }
  const curveAt = (choice) => ({ verb: "resize", values: { adapter: value.values.adapter, ...choice, ...(value.values.base ? { base: value.values.base } : {}) } });
  const worstQueue = newest((choice) => live("curve", curveAt(choice), "curve-worst"), {
    done: (answer) => fill(worst, worstTable(answer.worst, worst.querySelector("details")?.open)),
  });
  const askWorst = later(() => {
    const { rank, max_size } = value.values;
    if (rank || max_size) worstQueue.ask(rank ? { rank } : { max_size });
  }, 200);
  const queue = newest(() => live("curve", curveAt({ rank: 1 }), "curve"), {
    busy: (is) => {
      place.classList.toggle("busy", is);
      if (is && !found) fill(place, el("p.soft", { role: "status" }, "Computing the curve…"));
    },
    done: (answer) => {
      found = answer;
      draw();
    },
    failed: (error) => fill(place, failure(error)),
  });
  const load = later(() => {
    if (value.values.adapter) queue.ask(value.values.adapter);
    else fill(place, empty("How small can it be?", "Choose an adapter: you see what each size costs, and take the point you like.",
      el("a.button.primary", { href: "#/resize?file=zuzu" }, "Try it with zuzu")));
  }, 250);
  const settings = form({ verb: "resize", info, values: value.values, about, first: ["adapter"], kept: value, onchange: (word) => {
    if (word === "adapter" || word === "base") {
      value.place = null;
      found = null;
      load();
    }
    changed();
  } });
  root.append(lead("resize", info), columns([panel("Adapter", settings.node), panel("Curve", place), end.node], [plan.node]));
  load();
  plan.ask(values());
  return () => {
    askWorst.cancel();
    worstQueue.stop();
    queue.stop();
    plan.stop();
    end.stop();
  };
}
