// Work that follows a slider: at most one request at a time, and only the newest that waits.

import { Replaced } from "./api.js";

/**
 * Return `{ask, stop}`. `ask(value)` runs `work(value)` at once, or when the running one has ended;
 * what waited before is dropped.
 *
 * @param {(value: any) => Promise<any>} work
 * @param {{done: Function, failed?: Function, busy?: Function}} listeners
 */
export function newest(work, { done, failed = () => {}, busy = () => {} }) {
  let running = false;
  let waiting = null;
  let stopped = false;
  async function pump() {
    running = true;
    busy(true);
    while (waiting && !stopped) {
      const [value] = waiting;
      waiting = null;
      try {
        const result = await work(value);
        if (!stopped) done(result, value);
      } catch (error) {
        if (!stopped && !(error instanceof Replaced)) failed(error, value);
      }
    }
    running = false;
    if (!stopped) busy(false);
  }
  return {
    ask(value) {
      waiting = [value];
      if (!running) pump();
    },
    stop() {
      stopped = true;
    },
  };
}
