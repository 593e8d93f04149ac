// Numbers and sizes as people read them, in the words of the command line.

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

/** Return a size of bytes with three digits: `292 kB`. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : Number(value.toPrecision(3))} ${UNITS[unit]}`;
}

/** Return a share as a percentage: `2.35 %`. */
export function percent(share, digits = 3) {
  if (share === null || share === undefined) return "";
  const value = share * 100;
  if (value > 99.99 && value < 100) return "> 99.99 %";
  return `${Number(value.toPrecision(digits))} %`;
}

/** Return a number with a few digits and a true minus sign. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  return String(Number(Number(value).toPrecision(digits))).replace("-", "−");
}

/** Return a time: `0.2 s`, `3 min 20 s`, `2 h 5 min`. */
export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 0.1) return "< 0.1 s";
  if (value < 10) return `${Number(value.toFixed(1))} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Return `1 module`, `2 modules`. */
export const plural = (count, word, many = `${word}s`) => `${count.toLocaleString("en")} ${count === 1 ? word : many}`;

/** Return the last part of a path. */
export const base = (path) => String(path ?? "").split(/[\\/]/).pop();

/** Return a file's name without its ending. */
export const stem = (path) => base(path).replace(/\.(safetensors|ckpt|pt|gguf)$/i, "");

const NAMED = {
  lr: "Learning rate", text_lr: "Learning rate of the text encoder", dtype: "Data type", vram: "GPU memory", to: "Dialect", for: "For the program",
  a: "First", b: "Second", ema: "Moving average (EMA)", min_snr: "Min-SNR", rslora: "rsLoRA", lora_plus: "LoRA+", vae: "VAE", lora: "Adapters",
};

/** Return a word of a recipe as a label: `max_size` → `Max size`. */
export function label(word) {
  if (NAMED[word]) return NAMED[word];
  const text = String(word).replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Return ranks, a mapping of rank to count, in short: `7–15`. */
export function ranks(found) {
  const all = Object.keys(found ?? {}).map(Number);
  if (!all.length) return "";
  const [least, most] = [Math.min(...all), Math.max(...all)];
  return least === most ? String(least) : `${least}–${most}`;
}

/** Return what a card is in short: family, rank, and what else is said. */
export const cardLine = (card, ...more) => [card.family, card.rank && `rank ${card.rank}`, ...more].filter(Boolean).join(" · ");

/** Return a value of a result in words. */
export function said(value) {
  if (value === null || value === undefined) return "none";
  if (Array.isArray(value)) return value.join(", ") || "none";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? number(value, 6) : String(value);
}

/** Return how long ago a time, in seconds since 1970, was. */
export function ago(when) {
  if (!when) return "";
  const passed = Math.max(0, Date.now() / 1000 - when);
  if (passed < 45) return "just now";
  if (passed < 3600) return `${Math.round(passed / 60) || 1} min ago`;
  if (passed < 86400) return `${Math.round(passed / 3600)} h ago`;
  return new Date(when * 1000).toLocaleDateString();
}
