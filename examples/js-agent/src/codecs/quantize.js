// From values to a body: each takes what was selected and says what is really sent.

import { concat, writeU16 } from "../bytes.js";
import { fromUpper, roundTiesToEven, roundToUpper, SMALLEST_SCALE } from "../float32.js";
import { logMagnitude } from "./values.js";

const BLOCK = 64;

/** [upper half, value] of the scale for `largest` as the level `top`; zero where it would be too small. */
function linearScale(largest, top) {
  const upper = roundToUpper(Math.fround(largest / top));
  const scale = fromUpper(upper);
  return scale < SMALLEST_SCALE ? [0, 0] : [upper, scale];
}

function linearLevel(value, scale, top) {
  if (scale === 0) return 0;
  return Math.max(-top, Math.min(top, roundTiesToEven(Math.fround(value / scale))));
}

function packNibbles(levels) {
  const out = new Uint8Array(Math.ceil(levels.length / 2));
  for (let i = 0; i < levels.length; i += 1) out[i >> 1] |= (levels[i] & 15) << (i % 2 === 0 ? 4 : 0);
  return out;
}

function upperBytes(upper) {
  const out = new Uint8Array(2);
  writeU16(out, 0, upper);
  return out;
}

const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);

/** The body of `int8` (bitsEach 8) or `int4` (4) for all of `values`. */
export function quantizeBlocks(values, bitsEach) {
  const top = 2 ** (bitsEach - 1) - 1;
  const blocks = Math.ceil(values.length / BLOCK);
  const scales = new Uint8Array(2 * blocks);
  const levels = new Uint8Array(values.length);
  for (let block = 0; block < blocks; block += 1) {
    const part = values.subarray(block * BLOCK, (block + 1) * BLOCK);
    const [upper, scale] = linearScale(largestOf(part), top);
    writeU16(scales, 2 * block, upper);
    part.forEach((value, i) => { levels[block * BLOCK + i] = linearLevel(value, scale, top); });
  }
  return concat(scales, bitsEach === 8 ? levels : packNibbles(levels));
}

/** The elements of a selection that a code sends: `{ keep, body }`, `keep` the positions within the selection. */
export function quantizeInt8(values) {
  const [upper, scale] = linearScale(largestOf(values), 127);
  const keep = [];
  const levels = [];
  values.forEach((value, i) => {
    const level = linearLevel(value, scale, 127);
    if (level === 0) return;
    keep.push(i);
    levels.push(level & 255);
  });
  return { keep, body: keep.length === 0 ? new Uint8Array(0) : concat(upperBytes(upper), Uint8Array.from(levels)) };
}

/** Blocks of the kept values, without those whose level would be zero at first. */
export function quantizeSparseBlocks(values, bitsEach) {
  const top = 2 ** (bitsEach - 1) - 1;
  const keep = [];
  for (let block = 0; block < values.length; block += BLOCK) {
    const part = values.subarray(block, block + BLOCK);
    const [, scale] = linearScale(largestOf(part), top);
    part.forEach((value, i) => { if (linearLevel(value, scale, top) !== 0) keep.push(block + i); });
  }
  return { keep, body: quantizeBlocks(Float32Array.from(keep, (at) => values[at]), bitsEach) };
}

/** Magnitudes in ascending order. */
function sortedMagnitudes(values) {
  return values.map(Math.abs).sort();
}

/** The first j largest with their mean, for the j with the largest sum^2 / j. */
export function quantizeSign(values) {
  const sorted = sortedMagnitudes(values);
  let sum = 0;
  let best = 0;
  let mean = 0;
  let smallest = Infinity;
  for (let j = 1; j <= sorted.length; j += 1) {
    const magnitude = sorted[sorted.length - j];
    sum += magnitude;
    if (magnitude === 0 || (sum * sum) / j <= best) continue;
    best = (sum * sum) / j;
    mean = sum / j;
    smallest = magnitude;
  }
  const upper = roundToUpper(Math.fround(mean));
  const scale = fromUpper(upper);
  if (scale < SMALLEST_SCALE) return { keep: [], body: new Uint8Array(0) };
  const keep = [];
  values.forEach((value, i) => {
    if (Math.abs(value) >= smallest && 2 * Math.abs(value) >= scale) keep.push(i);
  });
  const bits = new Uint8Array(Math.ceil(keep.length / 8));
  keep.forEach((i, at) => { if (values[i] < 0) bits[at >> 3] |= 128 >> (at & 7); });
  return { keep, body: concat(upperBytes(upper), bits) };
}

/** The eight magnitudes of a scale and a step, the largest first. */
const logLevels = (scale, step) => Array.from({ length: 8 }, (_, j) => scale * logMagnitude(j * step));

/** The least magnitude that belongs to a level: half-way to the next smaller one, half of the smallest. */
const logBorders = (levels) => levels.map((level, j) => (j < 7 ? (level + levels[j + 1]) / 2 : level / 2));

/** How many of the ascending `sorted` are below `border`. */
function countBelow(sorted, border) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < border) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The scale and step that carry the most square length for each bit, by sums over the sorted magnitudes. */
function chooseLog(sorted) {
  const sums = new Float64Array(sorted.length + 1);
  for (let i = 0; i < sorted.length; i += 1) sums[i + 1] = sums[i] + sorted[i];
  let best = { gain: -1, upper: 0, step: 1 };
  for (let eighths = 0; eighths <= 62; eighths += 1) {
    const upper = roundToUpper(Math.fround(sorted[sorted.length - 1] * 2 ** (-eighths / 8)));
    const scale = fromUpper(upper);
    if (scale < SMALLEST_SCALE || scale === Infinity) continue;
    for (let step = 1; step <= 16; step += 1) {
      const levels = logLevels(scale, step);
      const counts = [];
      let end = sorted.length;
      let square = 0;
      logBorders(levels).forEach((border, j) => {
        const start = Math.min(end, countBelow(sorted, border));
        square += levels[j] * (2 * (sums[end] - sums[start]) - levels[j] * (end - start));
        counts.push(end - start);
        end = start;
      });
      const kept = sorted.length - end;
      let entropy = 0;
      for (const count of counts) if (count > 0) entropy -= (count / kept) * Math.log2(count / kept);
      const gain = square / (64 + 1 + entropy);
      if (gain > best.gain) best = { gain, upper, step };
    }
  }
  return best;
}

export function quantizeLog4(values) {
  const sorted = sortedMagnitudes(values);
  const { gain, upper, step } = values.length === 0 ? { gain: -1 } : chooseLog(sorted);
  if (gain <= 0) return { keep: [], body: new Uint8Array(0) };
  const borders = logBorders(logLevels(fromUpper(upper), step));
  const keep = [];
  const levels = [];
  values.forEach((value, i) => {
    const level = borders.findIndex((border) => Math.abs(value) >= border);
    if (level < 0) return;
    keep.push(i);
    levels.push(value < 0 ? level + 8 : level);
  });
  return { keep, body: concat(upperBytes(upper), Uint8Array.of(step), packNibbles(levels)) };
}
