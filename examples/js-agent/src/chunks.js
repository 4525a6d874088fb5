// A blob from chunks that come in any order, twice, and over several connections.

import { equal } from "./bytes.js";
import { check } from "./errors.js";
import { sha256 } from "./keys.js";

const same = (a, b) => (a === undefined || b === undefined ? a === b : equal(a, b));

export class Assembly {
  /**
   * `largest`: bytes that the blob may have. `ref`: `{ size, sha256 }` where it is known beforehand;
   * `promised`: what else the manifest says (`chain_hash`, `rebase`, `replica_hash`), where it does.
   */
  constructor({ largest, ref = null, promised = null }) {
    this.largest = largest;
    this.ref = ref;
    this.facts = promised;
    this.count = null;
    this.chunkBytes = null; // length of chunk 0
    this.parts = new Map();
  }

  get isComplete() {
    return this.count !== null && this.parts.size === this.count;
  }

  /** Indices to fetch next: chunk 0 first, since it says how many there are and how long. */
  missing() {
    if (this.count === null) return [0];
    const out = [];
    for (let index = 0; index < this.count; index += 1) if (!this.parts.has(index)) out.push(index);
    return out;
  }

  /** Take a `chunk` message's body; whether it was new. Throws a ProtocolError if it does not fit. */
  add(chunk) {
    if (this.ref !== null) {
      check(chunk.ref.size === this.ref.size && equal(chunk.ref.sha256, this.ref.sha256), "bad-chunk", "ref");
    } else check(chunk.ref.size <= this.largest, "bad-chunk", "size");
    if (this.facts !== null) {
      const { chain_hash: chainHash, rebase, replica_hash: replicaHash } = this.facts;
      const fits = equal(chunk.chain_hash, chainHash) && (rebase === undefined || chunk.rebase === rebase);
      check(fits && same(chunk.replica_hash, replicaHash), "bad-chunk", "hashes or rebase");
    }
    if (this.count === null) {
      if (chunk.index !== 0) return false; // its length cannot be judged yet
      const { length } = chunk.data;
      const fits = length === 0 ? chunk.ref.size === 0 : length <= chunk.ref.size;
      check(fits && chunk.count === Math.max(1, Math.ceil(chunk.ref.size / length || 0)), "bad-chunk", "count");
      this.ref = chunk.ref;
      this.count = chunk.count;
      this.chunkBytes = length;
      this.facts ??= { chain_hash: chunk.chain_hash, rebase: chunk.rebase, replica_hash: chunk.replica_hash };
    }
    const last = this.ref.size - (this.count - 1) * this.chunkBytes;
    check(chunk.count === this.count, "bad-chunk", "count");
    check(chunk.data.length === (chunk.index === this.count - 1 ? last : this.chunkBytes), "bad-chunk", "length");
    if (this.parts.has(chunk.index)) return false;
    this.parts.set(chunk.index, chunk.data);
    return true;
  }

  /** The whole blob. Throws a ProtocolError if its hash is not the one that was promised. */
  join() {
    const out = new Uint8Array(this.ref.size);
    for (const [index, data] of this.parts) out.set(data, index * this.chunkBytes);
    check(equal(sha256(out), this.ref.sha256), "bad-hash", "blob");
    return out;
  }
}
