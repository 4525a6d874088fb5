// A payload as a vector: all n values, or k of them and where they stand.

import { readU32 } from "../bytes.js";
import { check } from "../errors.js";
import { decodeGrid } from "./grid.js";
import { decodeIndices, longest } from "./rice.js";
import { DENSE, SPARSE } from "./values.js";
import { unpack } from "./zstd.js";

const HEAD = 5;

/** A flag byte and a body of `length` bytes, raw or as a zstd frame that is shorter. */
function readBody(payload, at, length) {
  check(payload.length > at, "malformed", "no values");
  check(payload[at] <= 1, "unknown-codec", "flags");
  const rest = payload.subarray(at + 1);
  check(rest.length <= length, "too-large", "values");
  if (payload[at] === 0) {
    check(rest.length === length, "malformed", "values end early");
    return rest;
  }
  check(rest.length < length, "malformed", "zstd: not shorter than the body");
  return unpack(rest, length);
}

/** By the upper half of the tag. */
const CODERS = {
  1: (section, k, n) => decodeIndices(section, k, n),
  2: (section, k, n, shapes) => decodeGrid(section, k, shapes),
};

/**
 * Decode `payload` for a vector of `n` elements.
 *
 * Returns `{ indices, values }`: Uint32Array or null for all, Float32Array. At most `largestK` elements of a sparse
 * payload are taken; `shapes` are those of the tensors that make up the vector. Throws a ProtocolError with the
 * document's reason.
 */
export function decode(payload, n, { largestK = n, shapes = [[n]] } = {}) {
  check(payload.length >= 1, "malformed", "empty");
  const form = payload[0] >> 4;
  const code = (form === 0 ? DENSE : form in CODERS ? SPARSE : {})[payload[0] & 15];
  check(code !== undefined, "unknown-codec", `tag ${payload[0]}`);
  if (form === 0) check(payload.length <= HEAD + 1 + code.length(n), "too-large", "payload");
  check(payload.length >= HEAD, "malformed", "no head");
  check(readU32(payload, 1) === n, "wrong-size", `for ${readU32(payload, 1)} elements, not ${n}`);
  if (form === 0) return { indices: null, values: code.decode(readBody(payload, HEAD, code.length(n)), n) };

  check(payload.length >= HEAD + 8, "malformed", "no head");
  const k = readU32(payload, HEAD);
  const s = readU32(payload, HEAD + 4);
  check(k <= n, "malformed", "more elements than there are");
  check(k <= largestK, "too-large", "more elements than were agreed on");
  check(s <= longest(n, k), "too-large", "indices");
  const start = HEAD + 8;
  check(payload.length >= start + s, "malformed", "indices end early");
  const values = readBody(payload, start + s, code.length(k));
  const indices = CODERS[form](payload.subarray(start, start + s), k, n, shapes);
  return { indices, values: code.decode(values, k) };
}

/** The same as one vector of n, zeros where nothing was sent. */
export function dense({ indices, values }, n) {
  if (indices === null) return values;
  const out = new Float32Array(n);
  for (let j = 0; j < indices.length; j += 1) out[indices[j]] = values[j];
  return out;
}
