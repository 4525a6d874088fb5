// What a device keeps of a run, in one storage and in transactions: counters, residual, outbox, model.

import { addTo, decodeUpdate } from "./blobs.js";
import { equal } from "./bytes.js";
import { bytesFromFloats, floatsFromBytes } from "./float32.js";
import { updateHeaderBody } from "./messages.js";
import { pack, unpack } from "./msgpack.js";
import { Replica } from "./replica.js";

const RECORD = "run";
const RESIDUAL = "residual";
const MODEL = "model";
const UPDATE = "update-";

const entryBytes = ({ header, data }) => pack({ header: updateHeaderBody.write(header), data });

function entryFrom(bytes) {
  const { header, data } = unpack(bytes);
  return { header: updateHeaderBody.read(header), data };
}

export class RunState {
  constructor(storage, schema) {
    this.storage = storage;
    this.schema = schema;
    this.clear();
    this.announced = { epoch: 0, sequence: 0 }; // the newest announcement
  }

  /** As at the beginning of a run. */
  clear(run = null) {
    this.run = run;
    this.counter = null; // of the next update; the first has its lease's number
    this.made = 0; // updates so far
    this.leaseTaken = 0; // the highest that was trained for or given back
    this.outbox = new Map(); // counter -> { header, data }
    this.residual = new Float32Array(this.schema.parameters);
  }

  static async load(storage, schema) {
    const state = new RunState(storage, schema);
    const record = await storage.read(RECORD);
    if (record === null) return state;
    const { announced, ...rest } = unpack(record);
    state.announced = announced;
    Object.assign(state, rest);
    const residual = await storage.read(RESIDUAL);
    if (residual !== null) state.residual = floatsFromBytes(residual);
    const counters = (await storage.names()).filter((name) => name.startsWith(UPDATE));
    for (const name of counters.sort((a, b) => a.slice(UPDATE.length) - b.slice(UPDATE.length))) {
      state.outbox.set(Number(name.slice(UPDATE.length)), entryFrom(await storage.read(name)));
    }
    return state;
  }

  record() {
    const { run, counter, made, leaseTaken, announced } = this;
    return pack({ run, counter, made, leaseTaken, announced });
  }

  /** The replica that was kept of this run, or null. */
  async readReplica() {
    const bytes = await this.storage.read(MODEL);
    return bytes === null ? null : Replica.fromBytes(bytes, this.run, this.schema);
  }

  keepReplica(replica) {
    return this.storage.commit({ [MODEL]: replica.toBytes(this.run) });
  }

  keepAnnounced(epoch, sequence) {
    this.announced = { epoch, sequence };
    return this.storage.commit({ [RECORD]: this.record() });
  }

  takeLease(lease) {
    this.leaseTaken = Math.max(this.leaseTaken, lease);
    return this.storage.commit({ [RECORD]: this.record() });
  }

  /** Follow `run` from its beginning, or none; all that was kept of another is dropped. */
  follow(run) {
    const changes = { [RESIDUAL]: null, [MODEL]: null };
    for (const counter of this.outbox.keys()) changes[UPDATE + counter] = null;
    this.clear(run);
    return this.storage.commit({ ...changes, [RECORD]: this.record() });
  }

  counterFor(lease) {
    return this.counter ?? lease;
  }

  /** The one transaction: residual, counter, lease and the update, or none of them. */
  async commitUpdate(header, data, residual) {
    this.counter = header.counter + 1;
    this.made += 1;
    this.leaseTaken = Math.max(this.leaseTaken, header.lease);
    this.residual = residual;
    this.outbox.set(header.counter, { header, data });
    await this.storage.commit({
      [RECORD]: this.record(),
      [RESIDUAL]: bytesFromFloats(residual),
      [UPDATE + header.counter]: entryBytes({ header, data }),
    });
  }

  /** Do what a receipt says, once. Whether it had an update: this one, and not one of before the disk was lost. */
  async settle({ run, counter, residual, digest }) {
    const entry = run === this.run ? this.outbox.get(counter) : undefined;
    if (entry === undefined) return false;
    if (digest !== undefined && !equal(digest, entry.header.payload.sha256.subarray(0, digest.length))) return false;
    this.outbox.delete(counter);
    const changes = { [UPDATE + counter]: null };
    if (residual === "restore") {
      addTo(this.residual, decodeUpdate(entry.data, this.schema).parameters);
      changes[RESIDUAL] = bytesFromFloats(this.residual);
    }
    await this.storage.commit(changes);
    return true;
  }
}
