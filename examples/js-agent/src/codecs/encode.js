// A vector as a payload. Bodies go raw: a zstd encoder is not needed to be understood.

import { concat, writeU32 } from "../bytes.js";
import { allFinite, bytesFromFloats } from "../float32.js";
import { quantizeBlocks, quantizeInt8, quantizeLog4, quantizeSign, quantizeSparseBlocks } from "./quantize.js";
import { encodeIndices } from "./rice.js";

const SPARSE = {
  "topk-log4": { tag: 0x14, quantize: quantizeLog4 },
  "topk-sign": { tag: 0x15, quantize: quantizeSign },
  "topk-int8": { tag: 0x16, quantize: quantizeInt8 },
  "topk-block8": { tag: 0x17, quantize: (values) => quantizeSparseBlocks(values, 8) },
  "topk-block4": { tag: 0x18, quantize: (values) => quantizeSparseBlocks(values, 4) },
};
const DENSE = {
  int8: { tag: 0x02, body: (values) => quantizeBlocks(values, 8) },
  int4: { tag: 0x03, body: (values) => quantizeBlocks(values, 4) },
  float32: { tag: 0x01, body: bytesFromFloats },
};

/** The codecs that `encode` knows, as `decode` does. */
export const CODECS = [...Object.keys(SPARSE), ...Object.keys(DENSE)];

/** max(1, ceil(density n)), the density taken as the decimal that it is written as. */
export function countKept(density, n) {
  if (n === 0) return 0;
  const [mantissa, exponent = "0"] = String(density).split("e");
  const [whole, fraction = ""] = mantissa.split(".");
  const shift = fraction.length - Number(exponent);
  let numerator = BigInt(whole + fraction) * BigInt(n);
  let denominator = 1n;
  if (shift >= 0) denominator = 10n ** BigInt(shift);
  else numerator *= 10n ** BigInt(-shift);
  const k = Number((numerator + denominator - 1n) / denominator);
  return Math.min(n, Math.max(1, k));
}

/** The indices of the k largest magnitudes, ascending; of equal ones at the border the lowest. */
export function selectLargest(values, k) {
  if (k === 0) return new Uint32Array(0);
  const magnitudes = values.map(Math.abs);
  const border = magnitudes.slice().sort()[values.length - k];
  let equal = k;
  for (const magnitude of magnitudes) if (magnitude > border) equal -= 1;
  const out = new Uint32Array(k);
  let filled = 0;
  for (let i = 0; i < values.length; i += 1) {
    if (magnitudes[i] < border) continue;
    if (magnitudes[i] === border) {
      if (equal === 0) continue;
      equal -= 1;
    }
    out[filled] = i;
    filled += 1;
  }
  return out;
}

function head(tag, ...counts) {
  const out = new Uint8Array(1 + 4 * counts.length);
  out[0] = tag;
  counts.forEach((count, i) => writeU32(out, 1 + 4 * i, count));
  return out;
}

const RAW = Uint8Array.of(0);

function encodeDense(values, codec) {
  return concat(head(DENSE[codec].tag, values.length), RAW, DENSE[codec].body(values));
}

function encodeSparse(values, codec, density) {
  const n = values.length;
  const selected = selectLargest(values, countKept(density, n));
  const { keep, body } = SPARSE[codec].quantize(Float32Array.from(selected, (index) => values[index]));
  const indices = encodeIndices(keep.map((at) => selected[at]), n);
  return concat(head(SPARSE[codec].tag, n, keep.length, indices.length), indices, RAW, body);
}

/** `values` (Float32Array, finite) as a payload of `codec`, or of a dense one where that is smaller. */
export function encode(values, codec, density = 1) {
  if (!allFinite(values)) throw new RangeError("only finite values can be sent");
  if (codec in DENSE) return encodeDense(values, codec);
  if (!(codec in SPARSE)) throw new RangeError(`no codec ${codec}`);
  const n = values.length;
  if (n > 0 && n <= 64) return encodeDense(values, "int8");
  const sparse = encodeSparse(values, codec, density);
  if (n === 0 || density < 0.25) return sparse;
  const int4 = encodeDense(values, "int4");
  return int4.length <= sparse.length ? int4 : sparse;
}
