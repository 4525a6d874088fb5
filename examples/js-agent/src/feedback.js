// Error feedback: what training changed, and what was left over before, becomes an update and a new remainder.

import { encodeUpdate } from "./blobs.js";
import { flush } from "./float32.js";

const TRIALS = 8;
const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

/** The share of the parameters that the update number `made` (from 0) of a run may carry. */
export function densityOf(upload, made) {
  const { density, first_density: first, anneal_updates: updates } = upload;
  if (made >= updates) return density;
  return first ** (1 - made / updates) * density ** (made / updates);
}

/** The longest update of at most `bytes` that a few trials find; the shortest one, if none is so short. */
function encodeWithin(bytes, wanted, buffers, codec) {
  const n = wanted.length;
  let [fits, exceeds] = [1, Math.min(n, 16 * bytes) + 1]; // how many elements: certainly, and certainly not
  let best = encodeUpdate(wanted, buffers, { codec, density: fits / n });
  for (let trial = 0; trial < TRIALS && exceeds - fits > 1; trial += 1) {
    const count = trial === 0 && bytes < exceeds ? bytes : Math.floor((fits + exceeds) / 2);
    const tried = encodeUpdate(wanted, buffers, { codec, density: count / n });
    if (tried.blob.length > bytes) exceeds = count;
    else [fits, best] = [count, tried];
  }
  return best;
}

/** Take what is sent out of `wanted`, in place: the residual that stays. */
export function subtractSent(wanted, { indices, values }) {
  if (indices === null) for (let i = 0; i < wanted.length; i += 1) wanted[i] -= values[i];
  else for (let j = 0; j < indices.length; j += 1) wanted[indices[j]] -= values[j];
  return flush(wanted);
}

/**
 * `{ blob, residual, dropped }` of a change: Float32Array over the parameters; both sides of
 * sent + residual = change + old residual are the same to the bit.
 */
export function makeUpdate(change, oldResidual, upload, made) {
  const limit = upload.residual_cap * norm(change);
  const size = norm(oldResidual);
  const factor = size > limit ? limit / size : 1;
  const residual = new Float32Array(change.length);
  for (let i = 0; i < change.length; i += 1) {
    residual[i] = change[i] + (factor === 1 ? oldResidual[i] : Math.fround(oldResidual[i] * factor));
  }
  const { codec, update_bytes: budget } = upload;
  const buffers = new Float32Array(0);
  const { blob, sent } =
    budget === undefined
      ? encodeUpdate(residual, buffers, { codec, density: densityOf(upload, made) })
      : encodeWithin(budget, residual, buffers, codec);
  return { blob, residual: subtractSent(residual, sent), dropped: factor === 1 ? 0 : size * (1 - factor) };
}
