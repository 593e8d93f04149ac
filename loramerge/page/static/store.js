// What each view remembers, so that a reload loses nothing. Of two tabs the one that writes last wins.

import { later } from "./dom.js";

const PREFIX = "loramerge:";

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? {};
  } catch {
    return {};
  }
}

function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing: the page works, and forgets at a reload
  }
}

const waiting = new Map();
const writeAll = () => {
  for (const [name, value] of waiting) write(name, value);
  waiting.clear();
};
const flush = later(writeAll, 150);
addEventListener("pagehide", writeAll);

/** Return what a view remembers over its first state, and a function that keeps it. */
export function remembered(name, initial) {
  const value = { ...structuredClone(initial), ...(waiting.get(name) ?? read(name)) };
  const keep = () => {
    waiting.set(name, value);
    flush();
  };
  return { value, keep };
}

/** Return a list of listeners: `add` returns a function that takes one away again. */
export function signal() {
  const all = new Set();
  return {
    add(listener) {
      all.add(listener);
      return () => all.delete(listener);
    },
    say(...values) {
      for (const listener of [...all]) listener(...values);
    },
  };
}
