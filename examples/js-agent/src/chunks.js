// Blobs cut into chunks, and put together from chunks that come in any order, twice, and over several connections.

import { equal } from "./bytes.js";
import { check } from "./errors.js";
import { sha256 } from "./keys.js";

const MOST_CHUNKS = 65536;

/** How many chunks a blob has: one at least. */
export const countOf = (size, chunkBytes) => Math.max(1, Math.ceil(size / chunkBytes));

export function split(data, chunkBytes) {
  const out = [];
  for (let index = 0; index < countOf(data.length, chunkBytes); index += 1) {
    out.push(data.subarray(index * chunkBytes, (index + 1) * chunkBytes));
  }
  return out;
}

/** Whether a have-list names chunk `index`: bits from the lowest. */
export const isInList = (have, index) => ((have[index >> 3] >> (index & 7)) & 1) === 1;

/** The chunks of one blob of known `ref`, `{ size, sha256 }`, and length of chunk. */
export class Pieces {
  constructor(ref, chunkBytes) {
    this.ref = ref;
    this.chunkBytes = chunkBytes;
    this.count = ref.size === 0 ? 1 : countOf(ref.size, chunkBytes);
    check(this.count <= MOST_CHUNKS, "too-large", "chunks");
    this.parts = new Map();
  }

  get isComplete() {
    return this.parts.size === this.count;
  }

  /** Take a chunk; whether it was new. Throws a ProtocolError if it cannot be one. */
  add(index, data) {
    check(index < this.count, "bad-chunk", "index");
    const last = this.ref.size - (this.count - 1) * this.chunkBytes;
    check(data.length === (index === this.count - 1 ? last : this.chunkBytes), "bad-chunk", "length");
    if (this.parts.has(index)) return false;
    this.parts.set(index, data);
    return true;
  }

  missing() {
    const out = [];
    for (let index = 0; index < this.count; index += 1) if (!this.parts.has(index)) out.push(index);
    return out;
  }

  haveList() {
    const out = new Uint8Array(Math.ceil(this.count / 8));
    for (const index of this.parts.keys()) out[index >> 3] |= 1 << (index & 7);
    return out;
  }

  /** The whole blob; its hash is not checked. */
  join() {
    const out = new Uint8Array(this.ref.size);
    for (const [index, data] of this.parts) out.set(data, index * this.chunkBytes);
    return out;
  }
}

const same = (a, b) => (a === undefined || b === undefined ? a === b : equal(a, b));

/** A blob of the model, from `chunk` messages. Chunk 0 says what was not known beforehand. */
export class Assembly {
  /**
   * `largest`: bytes that the blob may have. `ref`: `{ size, sha256 }` where it is known beforehand;
   * `promised`: what else the manifest says (`chain_hash`, `rebase`, `replica_hash`), where it does.
   */
  constructor({ largest, ref = null, promised = null }) {
    this.largest = largest;
    this.ref = ref;
    this.facts = promised;
    this.pieces = null;
  }

  get isComplete() {
    return this.pieces !== null && this.pieces.isComplete;
  }

  /** Indices to fetch next: chunk 0 first. */
  missing() {
    return this.pieces === null ? [0] : this.pieces.missing();
  }

  /** Take a `chunk` message's body; whether it was new. Throws a ProtocolError if it does not fit. */
  add(chunk) {
    if (this.ref !== null) {
      check(chunk.ref.size === this.ref.size && equal(chunk.ref.sha256, this.ref.sha256), "bad-chunk", "ref");
    } else check(chunk.ref.size <= this.largest, "bad-chunk", "size");
    if (this.facts !== null) this.checkFacts(chunk);
    if (this.pieces === null) {
      if (chunk.index !== 0) return false; // its length cannot be judged yet
      check(chunk.data.length > 0 || chunk.ref.size === 0, "bad-chunk", "an empty chunk 0");
      const pieces = new Pieces(chunk.ref, chunk.data.length);
      check(chunk.count === pieces.count, "bad-chunk", "count");
      pieces.add(0, chunk.data);
      this.pieces = pieces;
      this.ref = chunk.ref;
      this.facts ??= { chain_hash: chunk.chain_hash, rebase: chunk.rebase, replica_hash: chunk.replica_hash };
      return true;
    }
    check(chunk.count === this.pieces.count, "bad-chunk", "count");
    return this.pieces.add(chunk.index, chunk.data);
  }

  checkFacts(chunk) {
    const { chain_hash: chainHash, rebase, replica_hash: replicaHash } = this.facts;
    const fits = equal(chunk.chain_hash, chainHash) && (rebase === undefined || chunk.rebase === rebase);
    check(fits && same(chunk.replica_hash, replicaHash), "bad-chunk", "hashes or rebase");
  }

  /** The whole blob. Throws a ProtocolError if its hash is not the one that was promised. */
  join() {
    const out = this.pieces.join();
    check(equal(sha256(out), this.ref.sha256), "bad-hash", "blob");
    return out;
  }
}
