// The jobs as the server tells them, in one list for all views.

import { get, link, post, remove } from "./api.js";
import { signal } from "./store.js";
import { fail } from "./toast.js";

const HIDDEN = 10000; // milliseconds
const known = new Map();
const changed = signal();
const library = signal();
const connection = signal();
const living = signal();

export const ACTIVE = new Set(["waiting", "running"]);
export const onChange = changed.add;
export const onLibrary = library.add;
export const onLive = living.add;
export const onConnection = connection.add;

/** Return all jobs, newest first. */
export const jobs = () => [...known.values()].sort((a, b) => (b.created > a.created ? 1 : b.created < a.created ? -1 : 0));
export const job = (id) => known.get(id);
export const active = () => jobs().filter((one) => ACTIVE.has(one.state));

const asking = new Set(); // what was told while the list was on its way: it may be newer than the list

async function load() {
  const told = [];
  asking.add(told);
  try {
    const found = await get("/api/jobs");
    known.clear();
    for (const one of found) known.set(one.id, one);
    told.forEach(take);
  } finally {
    asking.delete(told);
  }
  changed.say(null);
}

function take(part) {
  if (part.deleted) known.delete(part.id);
  else known.set(part.id, { outputs: [], events: [], ...known.get(part.id), ...part });
}

function merge(part) {
  take(part);
  for (const told of asking) told.push(part);
  changed.say(part.id);
}

let source = null;
let missed = true; // what happens before the stream is there is told by no event

function open() {
  source = new EventSource(link("/api/events"));
  source.addEventListener("job", (event) => merge(JSON.parse(event.data)));
  source.addEventListener("live", (event) => living.say(JSON.parse(event.data)));
  source.addEventListener("library", () => library.say());
  source.addEventListener("open", () => {
    if (missed) load().then(() => library.say(), fail);
    missed = false;
    connection.say(true);
  });
  source.addEventListener("error", () => {
    missed = true;
    connection.say(false);
  });
}

function close() {
  source?.close();
  source = null;
  missed = true;
}

/** Begin to listen. A browser opens the stream again by itself when it broke. */
export function begin() {
  // a browser has six connections to one server for all tabs: one in the background gives its own back
  let timer = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(close, HIDDEN);
    else if (!source) open();
  });
  open();
  return load();
}

/** Start a job: `{verb, values}` or `{recipe, set, force}`. Returns its id. */
export async function start(body) {
  const { id, already } = await post("/api/jobs", body);
  if (!known.has(id)) await load();
  return { id, already };
}

export const stop = (id) => post(`/api/jobs/${id}/stop`).catch(fail);
export async function again(id) {
  try {
    const answer = await post(`/api/jobs/${id}/again`);
    await load();
    return answer;
  } catch (error) {
    return fail(error);
  }
}

export async function forget(id) {
  try {
    await remove(`/api/jobs/${id}`);
    known.delete(id);
    changed.say(id);
  } catch (error) {
    fail(error);
  }
}
