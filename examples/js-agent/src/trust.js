// What a device believes of what it hears: one key, no epoch of the past, no packet twice.

import { equal } from "./bytes.js";
import { isSignedBy, open } from "./envelope.js";
import { check } from "./errors.js";
import { BODIES } from "./messages.js";
import { pack, unpack } from "./msgpack.js";

const REMEMBERED = 256;
const RECORD = "coordinator";
const RETAINED = new Set(["status", "announcement", "chunk"]);
const DOWN = new Set(["announcement", "lease", "receipt", "credit", "chunk", "notice"]);

/** The coordinator as this device knows it; what must outlive a restart is in `storage`. */
export class Trust {
  constructor(storage, { publicKey, epoch, pinned }) {
    this.storage = storage;
    this.publicKey = publicKey;
    this.epoch = epoch;
    this.pinned = pinned;
    this.forget();
  }

  /** `coordinatorKey`: 32 bytes from the settings, or null to keep to the first key that is heard. */
  static async load(storage, coordinatorKey = null) {
    const bytes = await storage.read(RECORD);
    const record = bytes === null ? { publicKey: null, epoch: 0 } : unpack(bytes);
    const pinned = coordinatorKey !== null;
    if (pinned && (record.publicKey === null || !equal(record.publicKey, coordinatorKey))) {
      return new Trust(storage, { publicKey: coordinatorKey, epoch: 0, pinned });
    }
    return new Trust(storage, { ...record, pinned });
  }

  forget() {
    this.seen = new Set();
    this.oldest = 0; // sequences up to this one count as seen
  }

  /**
   * The message in `packet`: `{ kind, epoch, sequence, body, isNewEpoch }`. Throws a ProtocolError.
   *
   * `expected` is what the topic is for: `{ kind, isDown }`.
   */
  async verify(topic, packet, expected) {
    if (expected.isDown) check(DOWN.has(expected.kind), "unknown-topic", topic);
    const opened = open(packet);
    check(opened.kind in BODIES, "unknown-kind", opened.kind);
    const body = BODIES[opened.kind].read(opened.body);
    check(opened.kind === expected.kind, "wrong-kind", `${opened.kind} on ${topic}`);
    check(opened.sender === "coordinator", "wrong-sender", opened.sender);
    const { kind, epoch, sequence } = opened;
    if (kind === "status") check(body.session === epoch, "malformed", "session");
    const key = this.publicKey ?? (kind === "status" ? body.public_key : null);
    check(key !== null, "key-unknown", topic);
    check(isSignedBy(opened, topic, key), "bad-signature", topic);
    if (kind === "status") check(equal(body.public_key, key), "bad-signature", "another key in the status");
    check(epoch >= this.epoch || kind === "chunk", "old-epoch", `${epoch} < ${this.epoch}`);
    const isNewEpoch = epoch > this.epoch;
    if (isNewEpoch || this.publicKey === null) {
      await this.storage.commit({ [RECORD]: pack({ publicKey: key, epoch: Math.max(epoch, this.epoch) }) });
      this.publicKey = key;
      if (isNewEpoch) this.forget();
      this.epoch = Math.max(epoch, this.epoch);
    }
    if (!RETAINED.has(kind)) this.takeOnce(sequence);
    return { kind, epoch, sequence, body, isNewEpoch };
  }

  takeOnce(sequence) {
    check(sequence > this.oldest && !this.seen.has(sequence), "replayed", `sequence ${sequence}`);
    this.seen.add(sequence);
    if (this.seen.size <= REMEMBERED) return;
    this.oldest = Math.min(...this.seen);
    this.seen.delete(this.oldest);
  }
}
