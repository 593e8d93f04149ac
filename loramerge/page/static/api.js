// Requests to the server, each with the token of the page's address.

const TOKEN = new URLSearchParams(location.search).get("token") ?? "";

const TAB = Math.random().toString(36).slice(2, 10); // two tabs do not replace each other's requests

/** An answer that says what is wrong, as the command line would. */
class ApiError extends Error {
  constructor(status, error) {
    super(error?.text ?? `the server answered ${status}`);
    this.status = status;
    this.hint = error?.hint ?? "";
    this.exitCode = error?.exit_code ?? null;
  }
}

/** A newer request of the same kind took the place of this one. */
export class Replaced extends Error {}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { "X-Loramerge-Token": TOKEN, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw new Replaced();
    throw new ApiError(0, { text: "The server does not answer.", hint: "Start `loramerge ui` again in the terminal." });
  }
  const said = response.headers.get("content-type")?.startsWith("application/json") ? await response.json() : null;
  if (said?.replaced) throw new Replaced();
  if (response.ok) return said;
  throw new ApiError(response.status, said?.error);
}

function queried(path, query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** Ask for something: `get("/api/library", {words: "style"})`. */
export const get = (path, query, signal) => answered(queried(path, query), { method: "GET", signal });

/** Send an object and return the answer. */
export const post = (path, body) =>
  answered(path, { method: "POST", body: JSON.stringify(body ?? {}), headers: { "Content-Type": "application/json" } });

/** Delete something, such as a job of the history. */
export const remove = (path) => answered(path, { method: "DELETE" });

/** Send a file as it is. */
export const upload = (file) =>
  answered(queried("/api/upload", { name: file.name }), { method: "POST", body: file });

/** Return the name under which the server tells of a live request of this tab. */
export const keyOf = (latest) => `${TAB}-${latest}`;

/** Ask the live worker; `latest` names what a newer request of this name replaces. */
export const live = (kind, body, latest) => post("/api/live", { kind, ...body, latest: keyOf(latest) });

/** Return an address with the token, for pictures, reports and events. */
export const link = (path, query) => queried(path, { ...query, token: TOKEN });

export const hasToken = TOKEN !== "";
