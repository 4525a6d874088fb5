// The questions about a device: one agent with a link of this program's own, on which no time passes by itself.

import { Agent } from "../src/agent.js";
import { concat, hex, unhex } from "../src/bytes.js";
import { bytesFromFloats, floatsFromBytes } from "../src/float32.js";
import { readFromDevice } from "../src/incoming.js";
import { pack } from "../src/msgpack.js";
import { Schema } from "../src/schema.js";
import { MemoryStorage } from "../src/storage/memory.js";
import { toJson } from "./json.js";

const LONG_S = 1000; // longer than any wait before a connection is tried again
const LAST = new Set(["device.lose", "device.restart"]);

const turn = () => new Promise((resolve) => { setImmediate(resolve); });

class Device {
  constructor({ federation, device, private: secret, task }) {
    this.federation = federation;
    this.device = device;
    this.schema = new Schema(task.entries);
    this.task = {
      ref: { name: task.name, version: task.version, schema_hash: task.schema_hash },
      schema: this.schema,
      numExamples: task.num_examples,
      train: (replica) => this.train(replica),
      evaluate: () => null,
    };
    this.storage = new MemoryStorage();
    this.secret = unhex(secret);
    this.now = 0;
    this.agent = null;
  }

  async start() {
    this.trained = null; // what ends the training that goes on
    this.forget();
    this.events = null;
    this.agent = await Agent.open({
      federation: this.federation,
      device: this.device,
      task: this.task,
      storage: this.storage,
      connect: async (will, events) => this.connected(will, events),
      now: () => this.now,
      wallClock: () => 0,
      log: (word, { error }) => { if (word === "failed") throw error; },
    });
  }

  /** What happened since the last question. */
  forget() {
    this.says = [];
    this.subscribes = [];
    this.trains = null;
  }

  read(topic, packet, retain) {
    const keyOf = () => this.agent.identity.publicKey;
    const { kind, raw } = readFromDevice({ federation: this.federation, keyOf }, topic, packet);
    return { topic, kind, retain, body: toJson(raw) };
  }

  connected(will, events) {
    this.events = events;
    this.will = this.read(will.topic, will.payload, true);
    return {
      packetLimit: this.packetLimit,
      traffic: [0, 0],
      subscribe: async (topics) => { this.subscribes.push(...topics); },
      unsubscribe: async () => {},
      publish: async (topic, packet, { retain = false } = {}) => { this.says.push(this.read(topic, packet, retain)); },
      close: async () => {},
      abort: () => {},
    };
  }

  train(replica) {
    this.replica = replica;
    this.isBeginning = true;
    return new Promise((resolve) => {
      this.trained = (change) => resolve({ weights: replica.weights.map((value, i) => value + change[i]), metrics: {} });
    });
  }

  /** Let everything happen that does not wait for time. */
  async settle() {
    for (let i = 0; i < 10; i += 1) {
      await turn();
      await this.agent.queue;
    }
  }

  /** What a training begins with, if one has begun. */
  beginning() {
    if (!this.isBeginning) return null;
    this.isBeginning = false;
    const { weights, buffers, version } = this.replica;
    const replica = hex(concat(bytesFromFloats(weights), bytesFromFloats(buffers)));
    return { run: this.agent.state.run, lease: this.agent.trainingLease, version, replica };
  }

  async answer(ask, given) {
    this.forget();
    switch (ask) {
      case "device.connect":
        this.agent.identity.session = given.session - 1;
        this.packetLimit = given.max_packet_bytes ?? Infinity;
        this.now += LONG_S;
        this.agent.tick(this.now);
        break;
      case "device.hear": this.events.onMessage(given.topic, unhex(given.packet)); break;
      case "device.trained": {
        const end = this.trained;
        this.trained = null;
        this.task.numExamples = given.num_examples;
        end(floatsFromBytes(unhex(given.change)));
        break;
      }
      case "device.lose": this.events.onClose(); break;
      case "device.restart": await this.start(); break;
      case "device.state": return this.state();
      default: return null;
    }
    await this.settle();
    const { says, subscribes, will } = this;
    if (LAST.has(ask)) return {};
    return { says, subscribes, trains: this.beginning(), ...(ask === "device.connect" ? { will } : {}) };
  }

  async state() {
    const { state, catchup } = this.agent;
    const replica = state.run === null ? null : (catchup.replica ?? null);
    return {
      version: replica?.version ?? null,
      replica_hash: replica === null ? null : hex(replica.hash()),
      outbox: [...state.outbox.keys()],
      residual: hex(bytesFromFloats(state.residual)),
    };
  }
}

let present = null;

/** Answers to `device.…`, each building on those before. */
export async function answerDevice(ask, given) {
  if (ask === "device.begin") {
    present = new Device(given);
    await present.storage.commit({ identity: pack({ secret: present.secret, session: 0 }) });
    await present.start();
    return {};
  }
  return present === null ? null : present.answer(ask, given);
}
