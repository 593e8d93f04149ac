// Small line icons, 24 units wide.

import { svg } from "./dom.js";

const PATHS = {
  library: "M4 5h6v6H4zM14 5h6v6h-6zM4 15h6v4H4zM14 15h6v4h-6z",
  mix: "M5 4c0 8 7 7 7 16M19 4c0 8-7 7-7 16",
  resize: "M4 20V10h10v10zM10 6V4h10v10h-2M14 4h6v6",
  bake: "M12 3v10M8 9l4 4 4-4M4 15v5h16v-5",
  merge: "M4 6h5l6 12h5M4 18h5l2-4M13 10l2-4h5",
  convert: "M4 8h13l-4-4M20 16H7l4 4",
  extract: "M12 21V11M8 15l4-4 4 4M4 9V4h16v5",
  train: "M4 20l4-7 4 3 7-11M4 20h16",
  inspect: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5L20 20",
  diff: "M9 4v16M15 4v16M4 8h5M15 16h5M4 16h5M15 8h5",
  compare: "M5 5h6v14H5zM13 9h6v10h-6z",
  recipes: "M6 3h9l4 4v14H6zM9 11h7M9 15h7",
  jobs: "M4 6h16M4 12h10M4 18h6",
  tools: "M5 12h.01M12 12h.01M19 12h.01",
  add: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  up: "M6 15l6-6 6 6",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  menu: "M12 5h.01M12 12h.01M12 19h.01",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v1M12 20v1M3 12h1M20 12h1M5.6 5.6l.7.7M17.7 17.7l.7.7M5.6 18.4l.7-.7M17.7 6.3l.7-.7",
  moon: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5z",
  play: "M8 5l11 7-11 7z",
  stop: "M6 6h12v12H6z",
  folder: "M3 6h6l2 2h10v11H3z",
  file: "M6 3h9l4 4v14H6zM15 3v4h4",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M15 9h.01M9 15h.01",
  check: "M5 12.5l4.5 4.5L19 7.5",
  warn: "M12 4l9 16H3zM12 10v4M12 17h.01",
  curve: "M3 18c6 0 5-12 9-12s3 12 9 12",
  star: "M12 4l2.5 5.2 5.7.8-4.1 4 1 5.6-5.1-2.7L6.9 19.6l1-5.6-4.1-4 5.7-.8z",
  help: "M9 9.5a3 3 0 1 1 4.5 2.6c-.9.5-1.5 1.1-1.5 2.2M12 17.5h.01",
};

/** Return an icon; it is hidden from screen readers, so its button needs a name. */
export function icon(name) {
  return svg("svg.icon", { viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: PATHS[name] ?? PATHS.tools }));
}
