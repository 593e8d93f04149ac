// The page: it asks what there is, builds the frame, and shows the view of the address.

import { get, hasToken } from "./api.js";
import { el, fill } from "./dom.js";
import { baseList } from "./fields.js";
import { frame } from "./frame.js";
import { begin } from "./jobs.js";
import { describe, routeOf } from "./routes.js";
import { help, listen } from "./shortcuts.js";
import { fail, failure } from "./toast.js";

const place = document.getElementById("frame");

async function start() {
  if (!hasToken) throw new Error("Open the address that `loramerge ui` shows in the terminal: it ends in a token that this one lacks.");
  const [about, verbs] = await Promise.all([get("/api/about"), get("/api/verbs"), begin().catch(fail)]);
  const parts = frame(place, { about, verbs, help });
  document.body.append(baseList(about));
  listen();

  let end = null;
  let turn = 0;
  async function show(first) {
    const mine = ++turn;
    const asked = routeOf(location.hash);
    const route = describe(asked, verbs);
    if (!route) {
      location.hash = "#/library";
      return;
    }
    const view = await route.load();
    if (mine !== turn) return;
    end?.();
    end = null;
    document.title = `${route.title} · loramerge`;
    parts.title.textContent = route.title;
    parts.mark(route.name);
    const root = el("div.view-root", { "data-view": route.name });
    fill(parts.content, root);
    scrollTo(0, 0);
    try {
      end = view.show(root, { about, verbs, verb: route.verb, query: asked.query }) ?? null;
    } catch (error) {
      fill(root, failure(error));
      throw error;
    }
    if (!first) parts.title.focus({ preventScroll: true });
  }
  addEventListener("hashchange", () => show(false).catch(fail));
  await show(true);
}

start().catch((error) => fill(place, el("main.alone", { id: "main" }, el("h1", {}, "loramerge"), failure(error))));

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
});
