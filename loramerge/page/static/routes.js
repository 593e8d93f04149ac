// The views, their names in the navigation and in the address.

/** Name → title, icon, group, the key after `g` that goes there, and the module that shows it. */
export const ROUTES = {
  library: { title: "Library", icon: "library", group: "", key: "l", load: () => import("./views/library.js") },
  mix: { title: "Mix", icon: "mix", group: "Make", key: "m", load: () => import("./views/mix.js") },
  resize: { title: "Resize", icon: "resize", group: "Make", key: "s", load: () => import("./views/resize.js") },
  bake: { title: "Bake", icon: "bake", group: "Make", key: "b", load: () => import("./views/verb.js") },
  merge: { title: "Merge", icon: "merge", group: "Make", key: "e", load: () => import("./views/verb.js") },
  convert: { title: "Convert", icon: "convert", group: "Make", key: "c", load: () => import("./views/verb.js") },
  extract: { title: "Extract", icon: "extract", group: "Make", key: "x", load: () => import("./views/verb.js") },
  train: { title: "Train", icon: "train", group: "Make", key: "t", load: () => import("./views/train.js") },
  inspect: { title: "Inspect", icon: "inspect", group: "Look", key: "i", load: () => import("./views/report.js") },
  diff: { title: "Diff", icon: "diff", group: "Look", key: "d", load: () => import("./views/report.js") },
  compare: { title: "Compare", icon: "compare", group: "Look", key: "p", load: () => import("./views/report.js") },
  recipes: { title: "Recipes", icon: "recipes", group: "Work", key: "r", load: () => import("./views/recipes.js") },
  jobs: { title: "Jobs", icon: "jobs", group: "Work", key: "j", load: () => import("./views/jobs.js") },
};

/** The views of the bar at the foot of a phone; the others are in its menu. */
export const FOOT = ["library", "mix", "resize", "jobs"];

/** Return the route of an address's hash: `{name, verb, query}`. */
export function routeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name, verb] = path.split("/");
  return { name: name || "library", verb: verb ?? null, query: new URLSearchParams(query) };
}

/** Return the description of a route: a verb without a view of its own has the general one. */
export function describe({ name, verb }, verbs) {
  if (ROUTES[name]) return { ...ROUTES[name], name, verb: name };
  if (name !== "do" || !verbs[verb]) return null;
  // a report is made while one looks; a verb that may write, such as meta, runs when one says so
  const looks = verbs[verb].gives === "report" && !verbs[verb].parameters.some((one) => one.output);
  const load = looks ? ROUTES.inspect.load : ROUTES.bake.load;
  return { title: verb.charAt(0).toUpperCase() + verb.slice(1), icon: "tools", group: "More", name: `do/${verb}`, verb, load };
}

/** Return the verbs that have no view of their own. */
export const others = (verbs) => Object.keys(verbs).filter((verb) => !ROUTES[verb]);
