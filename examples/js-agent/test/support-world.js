// A broker and a coordinator in memory, as small as the agent's life needs them.

import { Agent } from "../src/agent.js";
import { firstChainHash } from "../src/blobs.js";
import { encode } from "../src/codecs/encode.js";
import { seal } from "../src/envelope.js";
import { readFromDevice } from "../src/incoming.js";
import { keyIdOf, publicKeyOf, sha256 } from "../src/keys.js";
import { BODIES } from "../src/messages.js";
import { pack } from "../src/msgpack.js";
import { Replica } from "../src/replica.js";
import { Schema } from "../src/schema.js";
import { chunkTopic, topicsOf } from "../src/topics.js";

const [FEDERATION, DEVICE, RUN] = ["home", "dev-1", "r-1"];
const N = 100;
const SECRET = new Uint8Array(32).fill(7);

export const schema = new Schema([{ name: "w", shape: [N], dtype: "float32", role: "parameter", tied_to: "" }]);
const task = { name: "line", version: "1", schema_hash: schema.hash };

/** What training for a lease changes: multiples of 2^-10, different for each lease. */
export const changeOf = (lease) => Float32Array.from({ length: N }, (_, i) => (((i * 7 + lease * 13) % 41) - 20) / 1024);

export class World {
  constructor(storage) {
    this.storage = storage;
    this.topics = topicsOf(FEDERATION, DEVICE);
    this.now = 0;
    this.epoch = 1;
    this.sequence = 0;
    this.heard = []; // of the device: { kind, epoch, sequence, body }
    this.retained = new Map();
    this.events = null; // of the present connection
    this.trained = []; // leases
    this.snapshot = pack([encode(new Float32Array(N), "float32"), encode(new Float32Array(0), "float32")]);
    this.replica = Replica.fromSnapshot(this.snapshot, 0, { chain_hash: firstChainHash(this.snapshot) }, schema);
  }

  seal(topic, kind, body) {
    this.sequence += 1;
    const message = { kind, sender: "coordinator", epoch: this.epoch, sequence: this.sequence, body: BODIES[kind].write(body) };
    return seal(topic, message, { secret: SECRET, id: keyIdOf(publicKeyOf(SECRET)) });
  }

  publishRetained(topic, kind, body) {
    this.retained.set(topic, this.seal(topic, kind, body));
  }

  /** Let the device hear a message on its own topic. */
  async tell(kind, body) {
    const topic = this.topics.down.replace("+", kind);
    this.events.onMessage(topic, this.seal(topic, kind, body));
    await this.settle();
  }

  publishStatus() {
    const body = { online: true, session: this.epoch, public_key: publicKeyOf(SECRET) };
    this.publishRetained(this.topics.status, "status", body);
  }

  /** The run at version 0, and its snapshot as one chunk. */
  publishRun({ lease, state = "running", codec = "topk-int8" }) {
    const ref = { size: this.snapshot.length, sha256: sha256(this.snapshot) };
    const hashes = { chain_hash: this.replica.chainHash, replica_hash: this.replica.hash() };
    const chunk = { run: RUN, version: 0, blob: "snapshot", index: 0 };
    this.publishRetained(chunkTopic(FEDERATION, chunk), "chunk", { ...chunk, count: 1, ref, ...hashes, data: this.snapshot });
    this.publishRetained(this.topics.run, "announcement", {
      run: RUN,
      state,
      task,
      mode: "sync",
      round: lease,
      manifest: { version: 0, base: 0, snapshot: ref, chain_bytes: 0, ...hashes },
      cohort: { devices: [DEVICE] },
      lease,
      lease_s: 60,
      train: {},
      upload: { codec, density: 0.1, first_density: 0.1, residual_cap: 1e9 },
    });
  }

  /** Everybody who listens hears what is retained under `topic`. */
  async say(topic) {
    this.events?.onMessage(topic, this.retained.get(topic));
    await this.settle();
  }

  connect(will, events) {
    this.events = events;
    this.will = will;
    const hear = (topic) => { if (this.events === events && this.retained.has(topic)) events.onMessage(topic, this.retained.get(topic)); };
    return {
      packetLimit: 131072,
      traffic: [0, 0],
      subscribe: async (topics) => { setImmediate(() => topics.forEach(hear)); },
      unsubscribe: async () => {},
      publish: async (topic, packet) => {
        if (this.events === events) this.heard.push(readFromDevice({ federation: FEDERATION, keyOf: () => this.agent.identity.publicKey }, topic, packet));
      },
      close: async () => {},
      abort: () => { if (this.events === events) events.onClose(); },
    };
  }

  /** The device starts with what its storage has. */
  async start() {
    this.agent = await Agent.open({
      federation: FEDERATION,
      device: DEVICE,
      storage: this.storage,
      task: {
        ref: task,
        schema,
        numExamples: 10,
        train: async ({ weights }) => {
          const { lease } = this.training;
          return { weights: weights.map((value, i) => value + changeOf(lease)[i]), metrics: {} };
        },
      },
      connect: async (will, events) => this.connect(will, events),
      now: () => this.now,
      wallClock: () => 1000,
      log: (word, details) => { if (word === "failed") this.failure = details.error; },
    });
    const { train } = this.agent;
    this.agent.train = (lease, ...rest) => {
      this.training = lease;
      this.trained.push(lease.lease);
      return train.call(this.agent, lease, ...rest);
    };
    await this.tick();
  }

  /** The power goes: nobody hears this agent again, nor does it hear anything. */
  crash() {
    this.events = null;
  }

  /** Let everything happen that is not waiting for time. */
  async settle() {
    for (let i = 0; i < 20; i += 1) {
      await new Promise((resolve) => { setImmediate(resolve); });
      await this.agent.queue;
    }
  }

  async tick(seconds = 0) {
    this.now += seconds;
    await this.agent.tick(this.now);
    await this.settle();
  }

  said(kind) {
    return this.heard.filter((message) => message.kind === kind);
  }

  receipt(counter, residual = "keep", reason = "", digest = undefined) {
    const outcome = residual === "keep" ? "accepted" : "rejected";
    return this.tell("receipt", { run: RUN, counter, outcome, reason, residual, digest });
  }
}
