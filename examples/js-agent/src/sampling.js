// A cohort that is a rule: who takes part in a round. And whose turn it is to send.

import { concat, utf8 } from "./bytes.js";
import { sha256 } from "./keys.js";

/** The first 8 bytes of SHA-256(seed || round || device), over 2^64, as the nearest float64. */
export function drawOf(seed, round, device) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(round));
  const digest = sha256(concat(seed, bytes, utf8(device)));
  return Number(new DataView(digest.buffer, digest.byteOffset).getBigUint64(0)) / 2 ** 64;
}

/** Whether a device takes part in a round. */
export const isSampled = (seed, round, device, rate) => drawOf(seed, round, device) < rate;

const RING = 2 ** 32;

/** Where a device stands on the ring of turns: the first 4 bytes of SHA-256(device). */
export function placeOf(device) {
  const digest = sha256(utf8(device));
  return new DataView(digest.buffer, digest.byteOffset).getUint32(0);
}

/** Whether the arc of a `turn` is all of the ring. */
export const isEverybodys = ({ span }) => span === RING;

/** Whether a device may send updates. */
export const hasTurn = ({ start, span }, device) => (placeOf(device) - start + RING) % RING < span;
