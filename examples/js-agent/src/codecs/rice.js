// Strictly increasing indices as Rice-coded gaps, in blocks of 64 with a parameter each.

import { check } from "../errors.js";

const BLOCK = 64;
const LARGEST_PARAMETER = 31;

const bitLength = (x) => (x === 0 ? 0 : 32 - Math.clz32(x));

/** The most bytes that an encoder needs for k of n indices. */
export function longest(n, k) {
  if (k === 0) return 0;
  const nibbles = Math.ceil(Math.ceil(k / BLOCK) / 2);
  const bits = Math.min(n, k * (bitLength(Math.floor(n / k)) + 3)) + Math.floor(k / 128);
  return 1 + nibbles + Math.floor(bits / 8) + 30;
}

class BitReader {
  constructor(bytes, at) {
    this.bytes = bytes;
    this.at = 8 * at;
    this.end = 8 * bytes.length;
  }

  bit() {
    check(this.at < this.end, "malformed", "indices end early");
    const bit = (this.bytes[this.at >>> 3] >>> (7 - (this.at & 7))) & 1;
    this.at += 1;
    return bit;
  }

  take(count) {
    let value = 0;
    for (let i = 0; i < count; i += 1) value = 2 * value + this.bit();
    return value;
  }
}

/** The k indices below n that `bytes` hold. */
export function decodeIndices(bytes, k, n) {
  const out = new Uint32Array(k);
  if (k === 0) {
    check(bytes.length === 0, "malformed", "indices of nothing");
    return out;
  }
  const blocks = Math.ceil(k / BLOCK);
  const nibbleBytes = Math.ceil(blocks / 2);
  check(bytes.length >= 1 + nibbleBytes, "malformed", "indices end early");
  const parameters = new Uint8Array(blocks);
  for (let block = 0; block < blocks; block += 1) {
    const pair = bytes[1 + (block >> 1)];
    parameters[block] = Math.min(255, bytes[0] + (block % 2 === 0 ? pair >> 4 : pair & 15));
    check(parameters[block] <= LARGEST_PARAMETER, "malformed", "Rice parameter");
  }
  if (blocks % 2 === 1) check((bytes[nibbleBytes] & 15) === 0, "malformed", "filling");

  const reader = new BitReader(bytes, 1 + nibbleBytes);
  for (let block = 0; block < blocks; block += 1) {
    const last = Math.min(k, (block + 1) * BLOCK);
    for (let j = block * BLOCK; j < last; j += 1) out[j] = reader.take(parameters[block]);
    const missing = (8 - (last % 8)) % 8;
    for (let j = 0; j < missing; j += 1) check(reader.take(parameters[block]) === 0, "malformed", "filling");
  }
  let next = 0; // the smallest index that may follow
  for (let j = 0; j < k; j += 1) {
    const unit = 2 ** parameters[Math.floor(j / BLOCK)];
    next += out[j];
    check(next < n, "malformed", "index beyond the vector");
    while (reader.bit() === 0) {
      next += unit;
      check(next < n, "malformed", "index beyond the vector");
    }
    out[j] = next;
    next += 1;
  }
  while (reader.at % 8 !== 0) check(reader.bit() === 0, "malformed", "filling");
  check(reader.at === reader.end, "malformed", "bytes after the indices");
  return out;
}

class BitWriter {
  constructor(length) {
    this.bytes = new Uint8Array(length);
    this.at = 0;
  }

  bit(value) {
    if (value) this.bytes[this.at >>> 3] |= 128 >>> (this.at & 7);
    this.at += 1;
  }

  put(value, count) {
    for (let i = count - 1; i >= 0; i -= 1) this.bit((value >>> i) & 1);
  }
}

function bestParameter(gaps, first, last, base) {
  let sum = 0;
  for (let j = first; j < last; j += 1) sum += gaps[j];
  const log = bitLength(Math.max(1, Math.floor(sum / (last - first)))) - 1;
  let best = -1;
  let fewest = Infinity;
  for (let r = log - 1; r <= log + 1; r += 1) {
    const used = Math.min(Math.max(r, base), Math.min(base + 15, LARGEST_PARAMETER));
    let bits = (last - first) * (used + 1);
    for (let j = first; j < last; j += 1) bits += Math.floor(gaps[j] / 2 ** used);
    if (bits < fewest) [best, fewest] = [used, bits];
  }
  return best;
}

/** `indices`, strictly increasing and below n, as bytes. */
export function encodeIndices(indices, n) {
  const k = indices.length;
  if (k === 0) return new Uint8Array(0);
  const gaps = new Uint32Array(k);
  for (let j = 0; j < k; j += 1) gaps[j] = j === 0 ? indices[0] : indices[j] - indices[j - 1] - 1;
  const base = Math.max(0, bitLength(Math.floor(n / k)) - 8);
  const blocks = Math.ceil(k / BLOCK);
  const writer = new BitWriter(longest(n, k));
  writer.put(base, 8);
  const parameters = new Uint8Array(blocks);
  for (let block = 0; block < blocks; block += 1) {
    parameters[block] = bestParameter(gaps, block * BLOCK, Math.min(k, (block + 1) * BLOCK), base);
    writer.put(parameters[block] - base, 4);
  }
  if (blocks % 2 === 1) writer.put(0, 4);
  for (let block = 0; block < blocks; block += 1) {
    const last = Math.min(k, (block + 1) * BLOCK);
    for (let j = block * BLOCK; j < last; j += 1) writer.put(gaps[j], parameters[block]);
    for (let j = last; j % 8 !== 0; j += 1) writer.put(0, parameters[block]);
  }
  for (let j = 0; j < k; j += 1) {
    writer.at += Math.floor(gaps[j] / 2 ** parameters[Math.floor(j / BLOCK)]);
    writer.bit(1);
  }
  return writer.bytes.slice(0, Math.ceil(writer.at / 8));
}
