// The picture beside the sliders. It is asked for as soon as something moves; one request at a time, the newest wins.

import { keyOf, link, live } from "./api.js";
import { el, fill, fresh, later } from "./dom.js";
import { iconButton } from "./parts.js";
import { onLive } from "./jobs.js";
import { newest } from "./live.js";
import { pick } from "./picker.js";
import { failure } from "./toast.js";
import { seconds } from "./words.js";
import { wipe } from "./wipe.js";

export const FIRST_SETTINGS = { base: "tiny", prompt: "a happy zuzu on a purple background", negative: "", seed: 39, steps: 8, guidance: 2 };
const DRAW = "drawn";
const SMALL = 128; // pixels; what is narrower is said to be enlarged

/** Return the values of `preview` for settings, beside the adapters. */
function drawingValues(settings) {
  const found = { base: [settings.base || "tiny"], seed: [Number(settings.seed) || 0], steps: Number(settings.steps) || FIRST_SETTINGS.steps };
  if (settings.prompt) found.prompt = [settings.prompt];
  if (settings.negative) found.negative = settings.negative;
  if (settings.guidance) found.guidance = Number(settings.guidance);
  return found;
}

/** Return what a preview is asked for: the result of an action, or adapters together. */
export const asking = (settings, { of, adapters }) => {
  const values = { ...drawingValues(settings), no_base: true };
  return of ? { values, of } : { values: { ...values, adapters, together: true } };
};

/** Return the address of the picture in the last column of an answer. */
export function pictureOf(answer) {
  return link(`/picture/${answer.columns.at(-1).pictures[0]}.png`);
}

function settingsForm(settings, about, changed) {
  const id = fresh("draw");
  const wait = later(changed, 350);
  const input = (name, text, properties) => {
    const box = el(name === "prompt" || name === "negative" ? "textarea" : "input", {
      id: `${id}-${name}`, rows: 2, value: String(settings[name] ?? ""), spellcheck: "false", ...properties,
      oninput: () => {
        settings[name] = box.value;
        wait();
      },
    });
    return [el("div.field", {}, el("label", { for: `${id}-${name}` }, text), box), box];
  };
  // the tiny model wants few steps and little guidance; others what is usual for them
  const usual = () => {
    const tiny = settings.base.startsWith("tiny");
    Object.assign(settings, tiny ? { steps: FIRST_SETTINGS.steps, guidance: FIRST_SETTINGS.guidance } : { steps: 20, guidance: "" });
    steps.value = String(settings.steps);
    guidance.value = String(settings.guidance);
  };
  const [seedField, seed] = input("seed", "Seed", { type: "number", min: 0, step: 1 });
  const [baseField, baseBox] = input("base", "Base", { list: "bases", onchange: () => usual() });
  const [stepsField, steps] = input("steps", "Steps", { type: "number", min: 1, max: 1000 });
  const [guidanceField, guidance] = input("guidance", "Guidance", { type: "number", min: 1, step: "any", placeholder: "as usual" });
  const inField = (symbol, name, act) => iconButton(symbol, name, act, { title: name }, ".in-field");
  seedField.append(inField("dice", "Another seed", () => {
    seed.value = String(Math.floor(Math.random() * 100000));
    settings.seed = seed.value;
    changed();
  }));
  baseField.append(inField("folder", "Choose a base", async () => {
    const found = await pick({ refers: "bases", about });
    if (!found) return;
    settings.base = found[0].reference ?? found[0].path;
    baseBox.value = settings.base;
    usual();
    changed();
  }));
  return el("details.more.draw-settings", { open: innerHeight > 1000 }, el("summary", {}, "Prompt, seed and base"), el("div.draw-fields", {},
    input("prompt", "Prompt", {})[0],
    el("div.fields.small-fields", {}, baseField, seedField,
      stepsField, guidanceField),
    input("negative", "Negative prompt", {})[0]));
}

/**
 * Return `{node, ask, stop}`.
 *
 * @param {{about: object, settings: object, keep: Function, unfit?: () => string|null}} options `settings` is changed in place;
 *   `unfit` says why the base cannot draw what is there
 */
export function previewPanel({ about, settings, keep, onsettings = () => {}, settled = () => {}, unfit = () => null }) {
  const view = wipe();
  const said = el("p.soft.small.preview-said", { role: "status" }, "");
  const problem = el("div");
  const node = el("section.panel.preview", { "aria-label": "Preview", "data-state": "empty" });
  let asked = null;
  let held = null;
  let baseKey = null;
  const state = (name) => (node.dataset.state = name);

  const plain = newest((values) => live("preview", { verb: "preview", values }, "preview-base"), {
    done: (answer) => held === null && view.showA(pictureOf(answer), "without"),
    failed: () => (baseKey = null),
  });
  const queue = newest((body) => live("preview", { verb: "preview", ...body }, "preview"), {
    busy: (is) => node.classList.toggle("busy", is),
    done: async (answer, body) => {
      const [width, height] = (await view.showB(pictureOf(answer), "mix").catch(() => null)) ?? [];
      fill(problem);
      const text = body.of ? "The mix as it would be saved" : answer.columns.at(-1).label;
      said.textContent = `${text} · ${seconds(answer.seconds)}${width < SMALL ? ` · ${width} × ${height} pixels, enlarged` : ""}`;
      node.dataset.drawn = JSON.stringify(body);
      if (body !== asked) return;
      state(DRAW);
      settled();
    },
    failed: (error) => {
      if (!asked) return;
      state("failed");
      fill(problem, failure(error));
      settled();
    },
  });

  const doing = { loading: "Loading the model", preview: "Drawing" };
  const endLive = onLive((event) => {
    if (event.key !== keyOf("preview") || node.dataset.state !== "busy" || !doing[event.task]) return;
    const share = event.total > 1 ? ` ${Math.round((100 * event.done) / event.total)} %` : "";
    if (event.task === "loading" || node.dataset.drawn === undefined) said.textContent = `${doing[event.task]}…${share}`;
  });

  function ask(body) {
    if (about.drawing === false) return;
    if (!body) {
      state("empty");
      asked = null;
      return;
    }
    const why = unfit();
    if (why) {
      asked = null;
      state("failed");
      said.textContent = "";
      fill(problem, el("p.note.plain", {}, why));
      settled();
      return;
    }
    const drawing = drawingValues(settings);
    const key = JSON.stringify(drawing);
    if (key !== baseKey) {
      baseKey = key;
      plain.ask(drawing);
    }
    asked = asking(settings, body);
    state("busy");
    queue.ask(asked);
  }
  const hold = (address, text, share) => () => {
    held = address;
    view.showA(address, text);
    view.to(share);
  };
  const buttons = el("div.row.preview-buttons", {},
    el("button.quiet", { title: "Keep this picture as A, and compare it with what comes next", onclick: () => view.b && hold(view.b, "held", 50)() }, "Keep as A"),
    el("button.quiet", { onclick: () => {
      held = null;
      baseKey = null;
      view.to(Number(view.range.value) || 50);
      onsettings();
    } }, "Base as A"),
    el("button.quiet", { onclick: () => view.to(Number(view.range.value) ? 0 : 50) }, "Compare with A"));
  const wanted = el("p.soft.preview-empty", {}, "Add an adapter to see what it does.");
  const changed = () => {
    keep();
    onsettings();
  };
  node.append(...(about.drawing === false
    ? [el("h2", {}, "Preview"), el("p.soft", {}, "Pictures need torch and diffusers. Everything else works without them."),
      el("pre.code", {}, "pip install 'loramerge[train]'")]
    : [el("div.preview-frame", {}, view.node, wanted), said, buttons, problem, settingsForm(settings, about, changed)]));
  return {
    node,
    ask,
    isDrawing: () => node.dataset.state === "busy",
    stop: () => {
      endLive();
      plain.stop();
      queue.stop();
    },
  };
}
