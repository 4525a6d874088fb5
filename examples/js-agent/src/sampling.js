// A cohort that is a rule: who takes part in a round.

import { concat, utf8 } from "./bytes.js";
import { sha256 } from "./keys.js";

/** Whether the first 8 bytes of SHA-256(seed || round || device), read as a fraction, are below `rate`. */
export function isSampled(seed, round, device, rate) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(round));
  const digest = sha256(concat(seed, bytes, utf8(device)));
  const draw = new DataView(digest.buffer, digest.byteOffset).getBigUint64(0);
  return belowRate(draw, rate);
}

/** draw / 2^64 < rate, without rounding: a float64 is an integer times a power of two. */
function belowRate(draw, rate) {
  if (rate >= 1) return true;
  if (!(rate > 0)) return false;
  let shift = 64;
  let mantissa = rate;
  while (!Number.isInteger(mantissa)) {
    mantissa *= 2;
    shift -= 1;
  }
  const whole = BigInt(mantissa);
  return shift >= 0 ? draw < whole << BigInt(shift) : draw << BigInt(-shift) < whole;
}
