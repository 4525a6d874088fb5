import { hex } from "../src/bytes.js";
import { Float } from "../src/msgpack.js";

/** A body as JSON: byte strings as `{ hex }`, floats as numbers, nothing for nil. */
export function toJson(value) {
  if (value instanceof Uint8Array) return { hex: hex(value) };
  if (value instanceof Float) return value.value;
  if (Array.isArray(value)) return value.map(toJson);
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).filter(([, item]) => item !== null);
  return Object.fromEntries(entries.map(([key, item]) => [key, toJson(item)]));
}
