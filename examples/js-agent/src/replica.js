// One version of a run's model, held bit for bit.

import { applyDelta, decodeSnapshot, firstChainHash, nextChainHash, rebase } from "./blobs.js";
import { concat, equal } from "./bytes.js";
import { check } from "./errors.js";
import { bytesFromFloats, floatsFromBytes } from "./float32.js";
import { sha256 } from "./keys.js";
import { pack, unpack } from "./msgpack.js";

export class Replica {
  constructor({ version, chainHash, codec, weights, buffers }) {
    this.version = version;
    this.chainHash = chainHash;
    this.codec = codec; // of snapshots, and so of rebases
    this.weights = weights;
    this.buffers = buffers;
  }

  /** From a snapshot of `version`; `facts` are what its chunks said: chain_hash, replica_hash. */
  static fromSnapshot(blob, version, facts, schema) {
    if (version === 0) check(equal(firstChainHash(blob), facts.chain_hash), "bad-chain", "of version 0");
    const replica = new Replica({ version, chainHash: facts.chain_hash, ...decodeSnapshot(blob, schema) });
    replica.checkHash(facts.replica_hash);
    return replica;
  }

  /** SHA-256 of parameters, frozen tensors and buffers. */
  hash() {
    return sha256(concat(bytesFromFloats(this.weights), bytesFromFloats(this.buffers)));
  }

  checkHash(expected) {
    if (expected !== undefined) check(equal(this.hash(), expected), "bad-hash", "replica");
  }

  /** The next version. `facts` are what manifest or chunks said: chain_hash, rebase, replica_hash. */
  advance(blob, facts, schema) {
    const chainHash = nextChainHash(this.chainHash, blob);
    check(equal(chainHash, facts.chain_hash), "bad-chain", `of version ${this.version + 1}`);
    const next = new Replica({ ...this, weights: this.weights.slice(), buffers: this.buffers.slice() });
    applyDelta(next, blob, schema);
    if (facts.rebase) rebase(next, this.codec);
    next.checkHash(facts.replica_hash);
    next.version = this.version + 1;
    next.chainHash = chainHash;
    return next;
  }

  toBytes(run) {
    const { version, chainHash, codec } = this;
    const [weights, buffers] = [bytesFromFloats(this.weights), bytesFromFloats(this.buffers)];
    return pack({ run, version, chainHash, codec, weights, buffers });
  }

  /** What `toBytes` wrote, if it is of `run` and of this shape; else null. */
  static fromBytes(bytes, run, schema) {
    const record = unpack(bytes);
    const [weights, buffers] = [floatsFromBytes(record.weights), floatsFromBytes(record.buffers)];
    const fits = weights.length === schema.parameters + schema.frozen && buffers.length === schema.buffers;
    return record.run === run && fits ? new Replica({ ...record, weights, buffers }) : null;
  }
}
