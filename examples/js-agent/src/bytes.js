// Byte strings: joining, comparing, hexadecimal, UTF-8. Uint8Array throughout, never Node's Buffer.

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export const utf8 = (text) => encoder.encode(text);

/** Throws a TypeError for what is not UTF-8. */
export const fromUtf8 = (bytes) => decoder.decode(bytes);

export function concat(...parts) {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export function equal(a, b) {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i += 1) if (a[i] !== b[i]) return false;
  return true;
}

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export function unhex(text) {
  const out = new Uint8Array(text.length / 2);
  for (let i = 0; i < out.length; i += 1) out[i] = parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return out;
}

export const readU16 = (bytes, at) => bytes[at] | (bytes[at + 1] << 8);
export const readU32 = (bytes, at) =>
  (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;

export function writeU16(bytes, at, value) {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

export function writeU32(bytes, at, value) {
  writeU16(bytes, at, value);
  writeU16(bytes, at + 2, value >>> 16);
}
