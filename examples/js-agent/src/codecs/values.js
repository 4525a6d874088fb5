// The value codes: how long a body is, and what it decodes to.

import { check } from "../errors.js";
import { allFinite, floatsFromBytes, flush, fromUpper, SMALLEST_SCALE } from "../float32.js";
import { readU16 } from "../bytes.js";

const BLOCK = 64;
const TABLE = [256, 245, 235, 225, 215, 206, 197, 189, 181, 173, 166, 159, 152, 146, 140, 134];

/** T(16 a + b) = c_b 2^(-8 - a): the magnitude of a level, in parts of the scale. */
export const logMagnitude = (t) => TABLE[t % 16] * 2 ** (-8 - Math.floor(t / 16));

export const LARGEST_INT8_SCALE = (129 / 128) * 2 ** 121;
export const LARGEST_INT4_SCALE = (146 / 128) * 2 ** 125;

/** A scale at `at`: +0 or within the bounds. */
function readScale(body, at, largest) {
  const upper = readU16(body, at);
  check((upper & 0x7f80) !== 0x7f80, "not-finite", "scale");
  const scale = fromUpper(upper);
  check(upper === 0 || (scale >= SMALLEST_SCALE && scale <= largest), "malformed", "scale");
  return scale;
}

function readPositiveScale(body, at, largest) {
  const scale = readScale(body, at, largest);
  check(scale > 0, "malformed", "a scale of zero");
  return scale;
}

const nibble = (body, at, i) => (i % 2 === 0 ? body[at + (i >> 1)] >> 4 : body[at + (i >> 1)] & 15);

function checkLastNibble(body, at, count) {
  if (count % 2 === 1) check((body[at + (count >> 1)] & 15) === 0, "malformed", "filling");
}

const log4 = {
  length: (k) => (k === 0 ? 0 : 3 + Math.ceil(k / 2)),
  decode(body, k) {
    const out = new Float32Array(k);
    if (k === 0) return out;
    const scale = readPositiveScale(body, 0, Infinity);
    const step = body[2];
    check(step >= 1 && step <= 16, "malformed", "step");
    checkLastNibble(body, 3, k);
    for (let i = 0; i < k; i += 1) {
      const level = nibble(body, 3, i);
      const magnitude = scale * logMagnitude((level & 7) * step);
      out[i] = level & 8 ? -magnitude : magnitude;
    }
    return out;
  },
};

const sign = {
  length: (k) => (k === 0 ? 0 : 2 + Math.ceil(k / 8)),
  decode(body, k) {
    const out = new Float32Array(k);
    if (k === 0) return out;
    const scale = readPositiveScale(body, 0, Infinity);
    for (let i = 0; i < k; i += 1) out[i] = (body[2 + (i >> 3)] >> (7 - (i & 7))) & 1 ? -scale : scale;
    const filling = (8 - (k % 8)) % 8;
    check((body[body.length - 1] & ((1 << filling) - 1)) === 0, "malformed", "filling");
    return out;
  },
};

const sparseInt8 = {
  length: (k) => (k === 0 ? 0 : 2 + k),
  decode(body, k) {
    const out = new Float32Array(k);
    if (k === 0) return out;
    const scale = readPositiveScale(body, 0, LARGEST_INT8_SCALE);
    for (let i = 0; i < k; i += 1) {
      const level = (body[2 + i] << 24) >> 24;
      check(level !== 0 && level !== -128, "malformed", "level");
      out[i] = level * scale;
    }
    return out;
  },
};

function blockwise(bitsEach, largestScale) {
  const smallest = -(2 ** (bitsEach - 1));
  return {
    length: (n) => 2 * Math.ceil(n / BLOCK) + Math.ceil((n * bitsEach) / 8),
    decode(body, n) {
      const out = new Float32Array(n);
      const levels = 2 * Math.ceil(n / BLOCK);
      if (bitsEach === 4) checkLastNibble(body, levels, n);
      for (let block = 0; block * BLOCK < n; block += 1) {
        const scale = readScale(body, 2 * block, largestScale);
        for (let i = block * BLOCK; i < Math.min(n, (block + 1) * BLOCK); i += 1) {
          const raw = bitsEach === 8 ? body[levels + i] : nibble(body, levels, i);
          const level = (raw << (32 - bitsEach)) >> (32 - bitsEach);
          check(level !== smallest, "malformed", "level");
          check(scale > 0 || level === 0, "malformed", "a level without a scale");
          if (level !== 0) out[i] = level * scale;
        }
      }
      return out;
    },
  };
}

const float32 = {
  length: (n) => 4 * n,
  decode(body) {
    const out = floatsFromBytes(body);
    check(allFinite(out), "not-finite", "value");
    return flush(out);
  },
};

const int8 = blockwise(8, LARGEST_INT8_SCALE);
const int4 = blockwise(4, LARGEST_INT4_SCALE);

/** By the lower half of the tag: dense codes stand for all n values, sparse ones for k. */
export const DENSE = { 1: float32, 2: int8, 3: int4 };
export const SPARSE = { 4: log4, 5: sign, 6: sparseInt8, 7: int8, 8: int4 };
