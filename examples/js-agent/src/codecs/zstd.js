// One zstd frame (RFC 8878) that must hold exactly `size` bytes. The frame is measured before it is unpacked.

import { Decompress } from "fzstd";

import { check, ProtocolError } from "../errors.js";
import { readU16, readU32 } from "../bytes.js";

const MAGIC = 0xfd2fb528;
const WINDOW_LIMIT = 2 ** 23;

/** The content size that the frame states and where its blocks begin. */
function readHeader(frame) {
  check(frame.length >= 6 && readU32(frame, 0) === MAGIC, "malformed", "not a zstd frame");
  const descriptor = frame[4];
  const singleSegment = (descriptor >> 5) & 1;
  const sizeFlag = descriptor >> 6;
  check((descriptor & 8) === 0 && (descriptor & 3) === 0, "malformed", "zstd: reserved bit or dictionary");
  check(sizeFlag !== 0 || singleSegment === 1, "malformed", "zstd: no content size");
  let at = 5;
  if (!singleSegment) {
    const base = 2 ** (10 + (frame[at] >> 3));
    check(base + (base / 8) * (frame[at] & 7) <= WINDOW_LIMIT, "malformed", "zstd: window");
    at += 1;
  }
  const sizeBytes = 2 ** sizeFlag;
  check(frame.length >= at + sizeBytes, "malformed", "zstd: too short");
  let size = frame[at];
  if (sizeFlag === 1) size = readU16(frame, at) + 256;
  else if (sizeFlag >= 2) size = readU32(frame, at) + (sizeFlag === 3 ? readU32(frame, at + 4) * 2 ** 32 : 0);
  return { size, blocks: at + sizeBytes, checksum: (descriptor >> 2) & 1 };
}

/** Where the frame ends, by the lengths of its blocks. */
function findEnd(frame, { blocks, checksum }) {
  let at = blocks;
  for (let last = 0; last === 0; ) {
    check(frame.length >= at + 3, "malformed", "zstd: too short");
    const head = frame[at] | (frame[at + 1] << 8) | (frame[at + 2] << 16);
    const type = (head >> 1) & 3;
    check(type !== 3, "malformed", "zstd: block type");
    last = head & 1;
    at += 3 + (type === 1 ? 1 : head >> 3);
  }
  return at + 4 * checksum;
}

/** The `size` bytes that `frame` holds; anything else is refused. */
export function unpack(frame, size) {
  const header = readHeader(frame);
  check(header.size === size, "malformed", "zstd: content size");
  check(findEnd(frame, header) === frame.length, "malformed", "zstd: bytes after the frame");
  const out = new Uint8Array(size);
  let filled = 0;
  try {
    const stream = new Decompress((part) => {
      if (filled + part.length > size) throw new ProtocolError("malformed", "zstd: longer than stated");
      out.set(part, filled);
      filled += part.length;
    });
    stream.push(frame, true);
  } catch (error) {
    throw error instanceof ProtocolError ? error : new ProtocolError("malformed", `zstd: ${error.message}`);
  }
  check(filled === size, "malformed", "zstd: shorter than stated");
  return out;
}
