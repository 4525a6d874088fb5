// What a device believes of what it hears: one key, no epoch of the past, no packet twice.

import { equal } from "./bytes.js";
import { check } from "./errors.js";
import { readFromCoordinator } from "./incoming.js";
import { pack, unpack } from "./msgpack.js";

const REMEMBERED = 65536; // how far back; the coordinator's numbers go to other devices, too
const RECORD = "coordinator";
const RETAINED = new Set(["status", "announcement", "turn", "chunk"]); // these come again, and have rules of their own

/** Each pair of epoch and sequence once, as far as `window` back from the highest sequence. */
export class Replays {
  constructor(window = REMEMBERED) {
    this.window = window;
    this.epoch = -1;
  }

  /** Whether a packet is to be taken, which it then is. */
  take(epoch, sequence) {
    if (epoch < this.epoch) return false;
    if (epoch > this.epoch) Object.assign(this, { epoch, highest: -1, seen: new Set() });
    if (sequence <= this.highest - this.window || this.seen.has(sequence)) return false;
    this.seen.add(sequence);
    this.highest = Math.max(this.highest, sequence);
    for (const old of this.seen) { // the first ones in are nearly always the lowest
      if (old > this.highest - this.window) break;
      this.seen.delete(old);
    }
    return true;
  }
}

/** The coordinator as this device knows it; what must outlive a restart is in `storage`. */
export class Trust {
  constructor(storage, { federation, device, publicKey, epoch }) {
    Object.assign(this, { storage, federation, device, publicKey, epoch });
    this.replays = new Replays();
  }

  /** `coordinatorKey`: 32 bytes from the settings, or null to keep to the first key that is heard. */
  static async load(storage, { federation, device, coordinatorKey = null }) {
    const bytes = await storage.read(RECORD);
    let record = bytes === null ? { publicKey: null, epoch: 0 } : unpack(bytes);
    if (coordinatorKey !== null && (record.publicKey === null || !equal(record.publicKey, coordinatorKey))) {
      record = { publicKey: coordinatorKey, epoch: 0 };
    }
    return new Trust(storage, { federation, device, ...record });
  }

  /** The message in `packet`, as `readFromCoordinator` has it, and `isNewEpoch`. Throws a ProtocolError. */
  async verify(topic, packet) {
    const { federation, device, publicKey } = this;
    const message = readFromCoordinator({ federation, device, key: publicKey }, topic, packet);
    const { kind, epoch, sequence, key } = message;
    if (kind === "chunk") return { ...message, isNewEpoch: false }; // of any epoch: hashes pin it
    check(epoch >= this.epoch, "old-epoch", `${epoch} < ${this.epoch}`);
    const isNewEpoch = epoch > this.epoch;
    if (isNewEpoch || publicKey === null) {
      await this.storage.commit({ [RECORD]: pack({ publicKey: key, epoch }) });
      this.publicKey = key;
      this.epoch = epoch;
    }
    if (!RETAINED.has(kind)) check(this.replays.take(epoch, sequence), "replayed", `sequence ${sequence}`);
    return { ...message, isNewEpoch };
  }
}
