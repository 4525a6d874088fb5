// The part of MessagePack that the protocol speaks: nil, bool, integers below 2^53, float64, str, bin, array, map.

import { concat, fromUtf8, utf8 } from "./bytes.js";
import { check, ProtocolError } from "./errors.js";

const MOST_ITEMS = 4096;

/** A number that is to be written as float64 even where it is whole. */
export class Float {
  constructor(value) {
    this.value = value;
  }
}

const big = (byte, length, value) => {
  const out = new Uint8Array(1 + length);
  out[0] = byte;
  const view = new DataView(out.buffer);
  if (length === 1) view.setUint8(1, value);
  else if (length === 2) view.setUint16(1, value);
  else if (length === 4) view.setUint32(1, value);
  else view.setBigInt64(1, BigInt(value));
  return out;
};

const integer = (x) => {
  if (!Number.isSafeInteger(x)) throw new RangeError(`${x} is no integer below 2^53`);
  if (x >= 0) {
    if (x < 0x80) return Uint8Array.of(x);
    if (x < 0x100) return big(0xcc, 1, x);
    if (x < 0x10000) return big(0xcd, 2, x);
    return x < 2 ** 32 ? big(0xce, 4, x) : big(0xcf, 8, x);
  }
  if (x >= -0x20) return Uint8Array.of(x & 0xff);
  if (x >= -0x80) return big(0xd0, 1, x & 0xff);
  if (x >= -0x8000) return big(0xd1, 2, x & 0xffff);
  return x >= -(2 ** 31) ? big(0xd2, 4, x >>> 0) : big(0xd3, 8, x);
};

const float = (x) => {
  const out = new Uint8Array(9);
  out[0] = 0xcb;
  new DataView(out.buffer).setFloat64(1, x);
  return out;
};

/** The head of something of `length`: `fix` for the short form, then the 8, 16 and 32 bit forms. */
function head(length, fix, fixLimit, b8, b16, b32) {
  if (length < fixLimit) return Uint8Array.of(fix | length);
  if (b8 !== null && length < 0x100) return big(b8, 1, length);
  return length < 0x10000 ? big(b16, 2, length) : big(b32, 4, length);
}

/** `value` in its shortest form; numbers as integers (they must be whole) unless wrapped in `Float`. */
export function pack(value) {
  if (value === null) return Uint8Array.of(0xc0);
  if (typeof value === "boolean") return Uint8Array.of(value ? 0xc3 : 0xc2);
  if (typeof value === "number") return integer(value);
  if (value instanceof Float) return float(value.value);
  if (typeof value === "string") {
    const bytes = utf8(value);
    return concat(head(bytes.length, 0xa0, 32, 0xd9, 0xda, 0xdb), bytes);
  }
  if (value instanceof Uint8Array) return concat(head(value.length, 0, 0, 0xc4, 0xc5, 0xc6), value);
  if (Array.isArray(value)) return concat(head(value.length, 0x90, 16, null, 0xdc, 0xdd), ...value.map(pack));
  if (typeof value === "object") {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    const items = entries.flatMap(([key, item]) => [pack(key), pack(item)]);
    return concat(head(entries.length, 0x80, 16, null, 0xde, 0xdf), ...items);
  }
  throw new TypeError(`cannot pack a ${typeof value}`);
}

class Reader {
  constructor(bytes, depth) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.at = 0;
    this.depth = depth;
  }

  skip(count) {
    check(count <= this.bytes.length - this.at, "malformed", "msgpack: ends early");
    this.at += count;
    return this.at - count;
  }

  uint(length) {
    const at = this.skip(length);
    if (length === 1) return this.view.getUint8(at);
    if (length === 2) return this.view.getUint16(at);
    if (length === 4) return this.view.getUint32(at);
    return this.safe(this.view.getBigUint64(at));
  }

  int(length) {
    const at = this.skip(length);
    if (length === 1) return this.view.getInt8(at);
    if (length === 2) return this.view.getInt16(at);
    if (length === 4) return this.view.getInt32(at);
    return this.safe(this.view.getBigInt64(at));
  }

  safe(value) {
    check(value < 2n ** 53n && value > -(2n ** 53n), "malformed", "msgpack: beyond 2^53");
    return Number(value);
  }

  bin(length) {
    const at = this.skip(length);
    return this.bytes.slice(at, at + length);
  }

  str(length) {
    const at = this.skip(length);
    try {
      return fromUtf8(this.bytes.subarray(at, at + length));
    } catch {
      throw new ProtocolError("malformed", "msgpack: no UTF-8");
    }
  }

  /** `count` items, each at least `least` bytes: a count that lies is refused before memory is taken. */
  items(count, least, read) {
    check(this.depth > 0, "malformed", "msgpack: nested too deeply");
    check(count <= MOST_ITEMS, "malformed", "msgpack: too many items");
    check(count * least <= this.bytes.length - this.at, "malformed", "msgpack: ends early");
    this.depth -= 1;
    read(count);
    this.depth += 1;
  }

  array(length) {
    const out = [];
    this.items(length, 1, (count) => { for (let i = 0; i < count; i += 1) out.push(this.value()); });
    return out;
  }

  map(length) {
    const out = Object.create(null);
    this.items(length, 2, (count) => {
      for (let i = 0; i < count; i += 1) {
        const key = this.value();
        check(typeof key === "string" && !(key in out), "malformed", "msgpack: key");
        out[key] = this.value();
      }
    });
    return out;
  }

  value() {
    const byte = this.uint(1);
    if (byte < 0x80) return byte;
    if (byte < 0x90) return this.map(byte & 15);
    if (byte < 0xa0) return this.array(byte & 15);
    if (byte < 0xc0) return this.str(byte & 31);
    if (byte >= 0xe0) return byte - 256;
    switch (byte) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.bin(this.uint(2 ** (byte - 0xc4)));
      case 0xca: return new Float(this.view.getFloat32(this.skip(4)));
      case 0xcb: return new Float(this.view.getFloat64(this.skip(8)));
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return this.uint(2 ** (byte - 0xcc));
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return this.int(2 ** (byte - 0xd0));
      case 0xd9: case 0xda: case 0xdb: return this.str(this.uint(2 ** (byte - 0xd9)));
      case 0xdc: case 0xdd: return this.array(this.uint(2 ** (byte - 0xdb)));
      case 0xde: case 0xdf: return this.map(this.uint(2 ** (byte - 0xdd)));
      default: throw new ProtocolError("malformed", `msgpack: byte ${byte}`);
    }
  }
}

/**
 * The one value in `bytes`. Floats come as `Float`, so that a reader can tell 1.0 from 1; maps have no prototype.
 *
 * Throws a ProtocolError for extensions, lengths that lie, bytes left over and nesting beyond `depth`.
 */
export function unpack(bytes, depth = 16) {
  const reader = new Reader(bytes, depth);
  const value = reader.value();
  check(reader.at === bytes.length, "malformed", "msgpack: bytes left over");
  return value;
}
