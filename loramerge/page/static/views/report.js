// Inspect, diff, compare and other verbs that give a report: figures at once, and the whole page in a frame.

import { actionPanel } from "../action.js";
import { link, live } from "../api.js";
import { el, fill, later } from "../dom.js";
import { form, missing, wire } from "../form.js";
import { newest } from "../live.js";
import { empty, facts, panel, table } from "../parts.js";
import { remembered } from "../store.js";
import { failure } from "../toast.js";
import { given, lead } from "./verb.js";
import { label, said } from "../words.js";

const LONGEST = 60;
const TRIED = { inspect: "?file=zuzu", compare: "?file=zuzu&file=polka", diff: "?a=zuzu&b=polka" };

const flat = (value) => value === null || typeof value !== "object" || (Array.isArray(value) && value.every((one) => one === null || typeof one !== "object"));

function rowsTable(rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => rows.some((row) => flat(row[name] ?? null) && row[name] !== undefined)).slice(0, 8);
  return table(columns.map(label), rows.slice(0, LONGEST).map((row) => columns.map((name) => (flat(row[name] ?? null) ? said(row[name]) : ""))));
}

/** Return any result as figures: facts first, then what lies deeper, closed. */
function figures(value, depth = 0) {
  if (Array.isArray(value)) {
    if (value.length && value.every((one) => one && typeof one === "object" && !Array.isArray(one))) {
      return value.length === 1 ? figures(value[0], depth) : rowsTable(value);
    }
    return el("p.breaks", {}, said(value.map((one) => (flat(one) ? said(one) : JSON.stringify(one)))));
  }
  const entries = Object.entries(value).filter(([, one]) => one !== null && one !== undefined && !(Array.isArray(one) && !one.length));
  const simple = entries.filter(([, one]) => flat(one));
  const deep = entries.filter(([, one]) => !flat(one) && Object.keys(one).length);
  return el("div", {}, facts(simple.map(([name, one]) => [label(name), said(one)])),
    depth > 3 ? null : deep.map(([name, one]) => el("details.more", {}, el("summary", {}, label(name)), figures(one, depth + 1))));
}

export function show(root, { about, verbs, verb, query }) {
  const info = verbs[verb];
  const { value, keep } = remembered(verb, { values: {}, output: "", more: false });
  for (const word of ["a", "b"]) if (query.get(word)) value.values[word] = query.get(word);
  const files = query.getAll("file");
  if (files.length && verb !== "compare") delete value.values.files;
  if (given(info, verb, value.values, query) || query.size) keep();
  const values = () => (missing(verb, info, value.values).length ? null : wire(verb, info, value.values, about));
  const place = el("section.panel.report", { "aria-label": "Report", "aria-live": "polite", "data-state": "empty" });
  const end = actionPanel(verb, values, { label: "Look again", missing: "Choose what to look at.", output: null, act: () => look() });

  const queue = newest((all) => live("report", { verb, values: all }, `report-${verb}`), {
    busy: (is) => place.classList.toggle("busy", is),
    done: (answer) => {
      place.dataset.state = "shown";
      const address = answer.report ? link(`/report/${answer.report}`) : null;
      fill(place,
        address ? [el("iframe.report-frame", { src: address, sandbox: "", title: `Report of ${verb}` }),
          el("p", {}, el("a", { href: address, target: "_blank", rel: "noopener" }, "Open the report alone"))] : null,
        answer.result ? el("details.more", { open: !address }, el("summary", {}, "All figures"), figures(answer.result)) : null);
    },
    failed: (error) => {
      place.dataset.state = "failed";
      fill(place, failure(error));
    },
  });
  const look = () => {
    const all = values();
    if (all) queue.ask(all);
    else fill(place, empty("Nothing to look at yet", "Choose files above.",
      TRIED[verb] ? el("a.button.primary", { href: `#/${verb}${TRIED[verb]}` }, "Try it with what comes along") : null));
  };
  const soon = later(look, 400);
  const settings = form({ verb, info, values: value.values, about, kept: value, onchange: () => {
    keep();
    end.update();
    soon();
  } });
  root.append(lead(verb, info), panel("Settings", settings.node), place, end.node);
  look();
  return () => {
    soon.cancel();
    queue.stop();
    end.stop();
  };
}
