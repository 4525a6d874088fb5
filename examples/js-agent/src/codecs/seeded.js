// First weights from a recipe: segments that are constant, even or nearly normal, drawn from a seed.

import { readU16, readU32 } from "../bytes.js";
import { check } from "../errors.js";
import { floatsFromBytes, SMALLEST_SCALE } from "../float32.js";
import { eachBlock } from "./philox.js";

export const SEEDED = 0x0f;
const HEAD = 14;
const SEGMENT = 9;
const MOST_SEGMENTS = 16384;
const LARGEST_SCALE = 2 ** 96;
const PURPOSE = 1;
const [CONSTANT, EVEN, NORMAL] = [0, 1, 2];
const DENSE_TAGS = new Set([1, 2, 3]);

function checkValue(kind, value, bytes) {
  check(Number.isFinite(value), "not-finite", "value of a segment");
  if (kind === CONSTANT) {
    const isTiny = Math.abs(value) < 2 ** -126;
    check(!isTiny || Object.is(value, 0), "malformed", "constant");
    return;
  }
  check(readU16(bytes, 0) === 0 && value >= SMALLEST_SCALE && value <= LARGEST_SCALE, "malformed", "scale");
}

function readSegments(payload, n) {
  const count = (payload.length - HEAD) / SEGMENT;
  check(Number.isInteger(count), "malformed", "segments");
  check(count <= MOST_SEGMENTS, "too-large", "segments");
  const out = [];
  let start = 0;
  for (let at = HEAD; at < payload.length; at += SEGMENT) {
    const [length, kind] = [readU32(payload, at), payload[at + 4]];
    const bytes = payload.subarray(at + 5, at + SEGMENT);
    const [value] = floatsFromBytes(bytes);
    check(length > 0 && kind <= NORMAL, "malformed", "segment");
    checkValue(kind, value, bytes);
    out.push({ start, length, kind, value });
    start += length;
    check(start <= n, "malformed", "more weights than there are");
  }
  check(start === n, "malformed", "fewer weights than there are");
  return out;
}

function fill(out, { kind, value }, seed, part) {
  if (kind === CONSTANT) {
    out.fill(value);
    return;
  }
  const each = kind === EVEN ? 2 : 8; // bytes a weight
  const perBlock = 16 / each;
  eachBlock({ seed, purpose: PURPOSE, part, blocks: Math.ceil(out.length / perBlock) }, (bytes, block) => {
    const first = block * perBlock;
    for (let j = 0; j < perBlock && first + j < out.length; j += 1) {
      if (kind === EVEN) out[first + j] = (2 * readU16(bytes, 2 * j) - 65535) * value;
      else {
        let sum = -1020;
        for (let b = 0; b < 8; b += 1) sum += bytes[8 * j + b];
        out[first + j] = sum * value;
      }
    }
  });
}

/** `{ values, rebaseTag }` of a recipe for `n` weights: all of them, and the tag of the run's later snapshots. */
export function decodeRecipe(payload, n) {
  check(payload[0] === SEEDED, "unknown-codec", "no recipe");
  check(payload.length >= HEAD, "malformed", "no head");
  check(readU32(payload, 1) === n, "wrong-size", `for ${readU32(payload, 1)} elements, not ${n}`);
  const rebaseTag = payload[5];
  check(DENSE_TAGS.has(rebaseTag), "unknown-codec", `tag ${rebaseTag}`);
  const seed = [readU32(payload, 6), readU32(payload, 10)];
  const values = new Float32Array(n);
  readSegments(payload, n).forEach((segment, part) => {
    fill(values.subarray(segment.start, segment.start + segment.length), segment, seed, part);
  });
  return { values, rebaseTag };
}
