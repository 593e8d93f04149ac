// What can be done with an adapter: the views that take one.

const TAKES = { inspect: "file", mix: "add", resize: "file", bake: "file", convert: "file", compare: "file" };

/** Return the address of a view with an adapter in it; null if it takes none. */
export const placeFor = (view, reference) => (TAKES[view] ? `#/${view}?${TAKES[view]}=${encodeURIComponent(reference)}` : null);

/** Return what can be done with an adapter, the most usual first: `{label, view, href}`. */
export const waysOn = (reference) => Object.keys(TAKES).map((view) => ({
  label: view === "mix" ? "Add to mix" : view[0].toUpperCase() + view.slice(1), view, href: placeFor(view, reference),
}));
