// Indices in the grid code: hits in the rows and columns of tensors, as events of a range asymmetric numeral system.
// All numbers are whole and below 2^53; letters are those of docs/protocol-codecs.md.

import { check } from "../errors.js";
import { longest } from "./rice.js";

const MOST_ELEMENTS = 2 ** 24;
const MOST_INDICES = 2 ** 16;
const SEGMENT = 4096;
const TOTAL = 2 ** 24; // of the intervals' sizes
const M = TOTAL - 4097;

export const G = Float64Array.from({ length: 257 }, (_, u) => Math.round(2 ** 28 * Math.log2(1 + u / 256)));
export const E = Float64Array.from({ length: 257 }, (_, u) => Math.round(2 ** (24 - u / 256)));

const bitLength = (x) => (x < 2 ** 32 ? 32 - Math.clz32(x) : 64 - Math.clz32(Math.floor(x / 2 ** 32)));

/** log2 of y >= 1, in units of 2^-28. */
function lg(y) {
  const i = bitLength(y) - 1;
  const t = Math.floor(y * 2 ** (24 - i)) - 2 ** 24;
  const u = t >> 16;
  return 2 ** 28 * i + G[u] + Math.floor(((G[u + 1] - G[u]) * (t & 0xffff)) / 2 ** 16);
}

/** 2 to the power -d 2^-31, in units of 2^-24. */
function power(d) {
  const q = Math.floor(d / 2 ** 31);
  if (q > 24) return 0;
  const u = Math.floor(d / 2 ** 23) % 256;
  const v = Math.floor(d / 2 ** 7) % 65536;
  return (E[u] - Math.floor(((E[u] - E[u + 1]) * v) / 65536)) >> q;
}

class Events {
  constructor(section) {
    check(section.length === 0 || section[0] !== 0, "malformed", "a zero at the front");
    this.section = section;
    this.at = 0;
    this.x = 0;
    this.fill();
  }

  fill() {
    while (this.x < 2 ** 32 && this.at < this.section.length) {
      this.x = 256 * this.x + this.section[this.at];
      this.at += 1;
    }
  }

  /** Where the next event lies: its interval holds this place. */
  get place() {
    return this.x % TOTAL;
  }

  take(start, size) {
    this.x = size * Math.floor(this.x / TOTAL) + this.place - start;
    this.fill();
  }

  /** One of `count` equally likely numbers. */
  number(count) {
    const size = Math.floor(TOTAL / count);
    const i = Math.floor(this.place / size);
    check(i < count, "malformed", "a number that is none of them");
    this.take(i * size, size);
    return i;
  }

  end() {
    check(this.x === 0 && this.at === this.section.length, "malformed", "the state does not end at 0");
  }
}

/** Rows and columns of a tensor, the shorter side as rows; `indexOf(r, c)` within the tensor. */
function gridOf(shape) {
  const size = shape.reduce((product, length) => product * length, 1);
  const [rows, columns] = shape.length < 2 ? [1, size] : [shape[0], size / shape[0]];
  if (rows > columns) return { size, R: columns, C: rows, indexOf: (r, c) => c * columns + r };
  return { size, R: rows, C: columns, indexOf: (r, c) => r * columns + c };
}

/** The hits of one tensor's grid, up to `left` of them: calls `hit(r, c)` for each. */
function decodeTensor(events, { size, R, C }, left, hit) {
  const L = events.number(bitLength(Math.min(left, size)) + 1);
  if (L === 0) return;
  const A = 2 ** events.number(4);
  const b = 2 ** events.number(4);
  const h = new Float64Array(C).fill(A);
  const sums = new Float64Array(C + 1); // of h before each column
  let isStale = true;
  let K = 0; // hits in the rows above
  let found = 0;
  for (let r = 0; r < R; r += 1) {
    if (isStale) for (let c = 0; c < C; c += 1) sums[c + 1] = sums[c] + h[c];
    isStale = false;
    let m = 0;
    let y = Math.floor((b * 2 * (A * C + 8 * K) * R * (r + 4)) / (8 * (K * R + 3 * 2 ** L))) + 1;
    const hits = [];
    for (let c = 0; c < C; ) {
      const e = Math.min(C, (Math.floor(c / SEGMENT) + 1) * SEGMENT);
      const lgY = lg(y);
      const Y = (j) => y + 2 * (sums[j] - sums[c]);
      const F = (j) => (j === c ? 0 : M - Math.floor((M * power((b + 8 * m) * (lg(Y(j)) - lgY))) / TOTAL) + j - c);
      const j = lastAtMost(F, c, e, events.place);
      const start = F(j);
      if (j === e) {
        events.take(start, TOTAL - start);
        y = Y(e);
        c = e;
        continue;
      }
      events.take(start, F(j + 1) - start);
      hit(r, j);
      hits.push(j);
      found += 1;
      if (found === left) return;
      y = Y(j) + h[j];
      m += 1;
      c = j + 1;
    }
    for (const j of hits) h[j] += 8;
    K += hits.length;
    isStale = hits.length > 0;
  }
}

/** The last j of c..e with F(j) <= place; F rises. */
function lastAtMost(F, c, e, place) {
  let [low, high] = [c, e];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (F(middle) <= place) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The k indices that `section` holds, of the elements of tensors of these `shapes`. */
export function decodeGrid(section, k, shapes) {
  const grids = shapes.map(gridOf);
  const n = grids.reduce((sum, { size }) => sum + size, 0);
  check(k <= MOST_INDICES && n <= MOST_ELEMENTS, "too-large", "for the grid code");
  check(k <= n, "malformed", "more elements than there are");
  check(section.length <= longest(n, k), "too-large", "indices");
  const events = new Events(section);
  const out = [];
  let base = 0;
  for (const grid of grids) {
    if (out.length === k) break;
    const first = base;
    if (grid.size > 0) decodeTensor(events, grid, k - out.length, (r, c) => out.push(first + grid.indexOf(r, c)));
    base += grid.size;
  }
  check(out.length === k, "malformed", "fewer indices than stated");
  events.end();
  return Uint32Array.from(out).sort();
}
