// Light or dark: as the system says, until the person says otherwise.

import { remembered } from "./store.js";

const kept = remembered("theme", { scheme: null });
const system = matchMedia("(prefers-color-scheme: dark)");

export const isDark = () => (kept.value.scheme ?? (system.matches ? "dark" : "light")) === "dark";

function apply() {
  if (kept.value.scheme) document.documentElement.dataset.theme = kept.value.scheme;
  else delete document.documentElement.dataset.theme;
}

/** Change to the other one; what the system says itself is not kept. */
export function toggle() {
  const next = isDark() ? "light" : "dark";
  kept.value.scheme = next === (system.matches ? "dark" : "light") ? null : next;
  kept.keep();
  apply();
}

apply();
