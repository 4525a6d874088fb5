// Snapshots, deltas and updates: pairs of codec bytes, for the parameters and for the buffers.

import { check } from "./errors.js";
import { decode, dense } from "./codecs/decode.js";
import { encode } from "./codecs/encode.js";
import { decodeRecipe, SEEDED } from "./codecs/seeded.js";
import { flush } from "./float32.js";
import { concat } from "./bytes.js";
import { sha256 } from "./keys.js";
import { pack, unpack } from "./msgpack.js";

function split(blob) {
  const parts = unpack(blob, 1);
  check(Array.isArray(parts) && parts.length === 2, "malformed", "blob");
  check(parts.every((part) => part instanceof Uint8Array), "malformed", "blob");
  return parts;
}

const DENSE_BY_TAG = { 1: "float32", 2: "int8", 3: "int4" };

function decodeWeights(payload, n) {
  if (payload[0] === SEEDED) {
    const { values, rebaseTag } = decodeRecipe(payload, n);
    return { weights: values, codec: DENSE_BY_TAG[rebaseTag] };
  }
  const weights = decode(payload, n).values;
  check(payload[0] in DENSE_BY_TAG, "unknown-codec", "a snapshot that is not dense");
  return { weights, codec: DENSE_BY_TAG[payload[0]] };
}

/**
 * What a device holds of a model: `weights` are parameters and frozen tensors, `buffers` the rest; and `codec`,
 * in which rebases are.
 */
export function decodeSnapshot(blob, schema) {
  const [weights, buffers] = split(blob);
  const decoded = decodeWeights(weights, schema.parameters + schema.frozen);
  return { ...decoded, buffers: dense(decode(buffers, schema.buffers), schema.buffers) };
}

/** One float32 addition for each element that was sent; then a subnormal or -0 becomes +0. */
export function addTo(vector, { indices, values }) {
  if (indices === null) for (let i = 0; i < values.length; i += 1) vector[i] += values[i];
  else for (let j = 0; j < indices.length; j += 1) vector[indices[j]] += values[j];
  return flush(vector);
}

const decodeParameters = (payload, { parameters, parameterShapes }) =>
  decode(payload, parameters, { shapes: parameterShapes });

/** Change a replica into the next version. */
export function applyDelta(replica, blob, schema) {
  const [weights, buffers] = split(blob);
  const change = decodeParameters(weights, schema);
  const newBuffers = dense(decode(buffers, schema.buffers), schema.buffers);
  addTo(replica.weights.subarray(0, schema.parameters), change);
  replica.buffers.set(newBuffers);
}

/** Replace a replica by what a snapshot of it in `codec` decodes to. */
export function rebase(replica, codec) {
  const n = replica.weights.length;
  replica.weights.set(decode(encode(replica.weights, codec), n).values);
}

/** An update's blob, and what it decodes to: `sent` for the parameters. */
export function encodeUpdate(wanted, bufferChange, { codec, density }) {
  const payload = encode(wanted, codec, density);
  return { blob: pack([payload, encode(bufferChange, "float32")]), sent: decode(payload, wanted.length) };
}

/** What an update decodes to: `parameters` as `decode` has it, and all of the `buffers`. */
export function decodeUpdate(blob, schema) {
  const [parameters, buffers] = split(blob);
  return {
    parameters: decodeParameters(parameters, schema),
    buffers: dense(decode(buffers, schema.buffers), schema.buffers),
  };
}

export const firstChainHash = (snapshot) => sha256(concat(new Uint8Array(32), sha256(snapshot)));
export const nextChainHash = (previous, delta) => sha256(concat(previous, sha256(delta)));
