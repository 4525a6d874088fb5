// float32 as bits. Scales keep the upper half of a float32: eight significant bits.

const cell = new Float32Array(1);
const bits = new Uint32Array(cell.buffer);

export const SMALLEST_SCALE = 2 ** -90;

export function bitsOf(value) {
  cell[0] = value;
  return bits[0];
}

/** The float32 whose upper sixteen bits are `upper` and whose lower ones are zero. */
export function fromUpper(upper) {
  bits[0] = upper << 16;
  return cell[0];
}

/** `value` rounded to eight significant bits, to nearest, ties to even, as the upper half of a float32. */
export function roundToUpper(value) {
  const b = bitsOf(value);
  return ((b + 0x7fff + ((b >>> 16) & 1)) >>> 16) & 0xffff;
}

/** To the nearest integer, ties to even. */
export function roundTiesToEven(x) {
  const floor = Math.floor(x);
  const over = x - floor;
  if (over !== 0.5) return over < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Subnormals and -0 become +0, in place. */
export function flush(values) {
  const b = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < b.length; i += 1) if ((b[i] & 0x7f800000) === 0) b[i] = 0;
  return values;
}

/** Whether no element is infinite or not a number. */
export function allFinite(values) {
  const b = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < b.length; i += 1) if ((b[i] & 0x7f800000) === 0x7f800000) return false;
  return true;
}

/** Little-endian bytes as a Float32Array of its own. */
export function floatsFromBytes(bytes) {
  const out = new Float32Array(bytes.length / 4);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let i = 0; i < out.length; i += 1) out[i] = view.getFloat32(4 * i, true);
  return out;
}

/** The little-endian bytes of float32 values. */
export function bytesFromFloats(values) {
  const out = new Uint8Array(4 * values.length);
  const view = new DataView(out.buffer);
  for (let i = 0; i < values.length; i += 1) view.setFloat32(4 * i, values[i], true);
  return out;
}
