// The weight of one adapter: a number, one for each component, one for each block, or a drawn curve.

/** Return a number without float dust: 0.30000000000000004 → 0.3. */
export const tidy = (value) => Number(Number(value).toFixed(4));

/** Return the weight that every new adapter has. */
export const plain = (value = 1) => ({ mode: "one", value });

const same = (a, b) => a.length === b.length && a.every((one, index) => one === b[index]);

/** Return the name of the preset that a vector is, or null. */
export function presetOf(vector, presets) {
  return Object.keys(presets).find((name) => same(presets[name], vector)) ?? null;
}

/** Return a weighted name, `{name, weight}`, as recipes and the command line write it. */
export function spoken({ name, weight }, presets) {
  if (weight.mode === "components") {
    const parts = Object.entries(weight.parts).map(([part, value]) => `${part}=${tidy(value)}`);
    return parts.length ? [name, ...parts].join(":") : name;
  }
  if (weight.mode === "blocks") {
    const vector = weight.vector.map(tidy);
    return `${name}:${presetOf(vector, presets) ?? vector.join(",")}`;
  }
  if (weight.mode === "depth") {
    return `${name}${weight.rest === null ? "" : `:te=${tidy(weight.rest ?? 1)}`}:depth=${weight.points.map(tidy).join(",")}`;
  }
  const value = tidy(weight.value);
  return value === 1 ? name : `${name}:${value}`;
}

/** Return a weight in short, for a line that is closed. */
export function brief(weight, presets) {
  if (weight.mode === "components") return Object.entries(weight.parts).map(([part, value]) => `${part} ${tidy(value)}`).join(", ");
  if (weight.mode === "blocks") return presetOf(weight.vector, presets) ?? `${weight.vector.length} blocks`;
  if (weight.mode === "depth") return "a curve";
  return String(tidy(weight.value));
}

/** Return weights of models that sum to 1; null if some are no single number, or belong to adapters: an error names the others. */
export function scaledToOne(weights, error) {
  const [, terms = ""] = error.match(/found: ([^,]*),/) ?? [];
  const sum = weights.reduce((all, one) => all + one.value, 0);
  if (!(sum > 0) || weights.some((one) => one.mode !== "one") || terms.split(" + ").length !== weights.length) return null;
  const scaled = weights.map((one) => tidy(one.value / sum));
  scaled[0] = tidy(1 - scaled.slice(1).reduce((all, one) => all + one, 0));
  return scaled.map(plain);
}

/** Return the size of a weight as one number, for what follows it roughly. */
function level(weight) {
  const values = { components: Object.values(weight.parts ?? {}), blocks: weight.vector, depth: weight.points }[weight.mode];
  return values?.length ? values.reduce((sum, one) => sum + one, 0) / values.length : (weight.value ?? 1);
}

const UNKNOWN = { components: ["unet", "te"], vectors: [], depth: false };

/** Return the components of an adapter, all of its family where they are not known, and the block vectors that it takes. */
export function partsOf({ family, components }, families) {
  const parts = families.find((one) => one.name === family) ?? UNKNOWN;
  return components ? { ...parts, components: parts.components.filter((one) => components.includes(one)) } : parts;
}

const hasEncoder = ({ components }) => components.some((one) => one.startsWith("te"));

/** Return a weight without what its adapter does not have. */
export function fitting(weight, parts) {
  if (weight.mode === "depth") return { ...weight, rest: hasEncoder(parts) ? (weight.rest ?? 1) : null };
  if (weight.mode !== "components") return weight;
  const own = Object.entries(weight.parts).filter(([part]) => parts.components.includes(part));
  return own.length ? { ...weight, parts: Object.fromEntries(own) } : plain();
}

/** Return a weight in another mode that says about the same. */
export function inMode(weight, mode, parts, length) {
  const value = tidy(level(weight));
  if (mode === "components") return { mode, parts: Object.fromEntries(parts.components.map((part) => [part, value])) };
  if (mode === "blocks") return { mode, vector: Array(length ?? parts.vectors[0]).fill(value) };
  if (mode === "depth") return { mode, points: Array(5).fill(value), rest: hasEncoder(parts) ? value : null };
  return plain(value);
}
