import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { decodeUpdate } from "../src/blobs.js";
import { hex } from "../src/bytes.js";
import { dense } from "../src/codecs/decode.js";
import { pack } from "../src/msgpack.js";
import { FileStorage } from "../src/storage/files.js";
import { MemoryStorage } from "../src/storage/memory.js";
import { changeOf, schema, World } from "./support-world.js";

async function joined(options = {}) {
  const world = new World(options.storage ?? new MemoryStorage());
  world.publishStatus();
  world.publishRun({ lease: 1, ...options });
  await world.start();
  return world;
}

const sentBy = (update) => dense(decodeUpdate(update.body.data, schema).parameters, schema.parameters);

test("it comes with a last will of its session, then its presence, then its update", async () => {
  const world = await joined();
  // The presence comes again, since the status was the first word of this coordinator's epoch.
  assert.deepEqual(world.heard.map(({ kind }) => kind), ["presence", "presence", "update"]);
  const [presence, , update] = world.heard;
  assert.equal(presence.body.session, 1001);
  assert.equal(presence.sequence, 2); // the last will took the first
  const { run, counter, lease, base_version: base } = update.body.header;
  assert.deepEqual({ run, counter, lease, base }, { run: "r-1", counter: 1, lease: 1, base: 0 });
});

test("what has no receipt is sent again, sealed anew, after five seconds and then seldom", async () => {
  const world = await joined();
  for (let i = 0; i < 100; i += 1) await world.tick(0.5);
  const updates = world.said("update");
  assert.ok(updates.length >= 3 && updates.length <= 6, `${updates.length} times in 50 s`);
  assert.equal(new Set(updates.map(({ sequence }) => sequence)).size, updates.length);
  assert.equal(new Set(updates.map(({ body }) => hex(body.data))).size, 1);
  await world.receipt(1);
  const before = world.heard.length;
  await world.tick(100);
  assert.equal(world.heard.slice(before).filter(({ kind }) => kind === "update").length, 0);
});

test("a rejected update comes back into the residual, once, however often the receipt comes", async () => {
  const world = await joined();
  await world.receipt(1, "restore", "no-lease");
  assert.deepEqual(world.agent.state.residual, changeOf(1));
  await world.receipt(1, "restore", "no-lease");
  assert.deepEqual(world.agent.state.residual, changeOf(1));
  assert.deepEqual(world.agent.counts, { accepted: 0, restored: 1, discarded: 0, trained: 1 });
});

test("a receipt for another update of its number is ignored", async () => {
  const world = await joined();
  const { sha256 } = world.said("update")[0].body.header.payload;
  await world.receipt(1, "keep", "", new Uint8Array(8));
  assert.equal(world.agent.counts.accepted, 0);
  await world.receipt(1, "keep", "", sha256.slice(0, 8));
  assert.equal(world.agent.counts.accepted, 1);
});

test("a discarded update is gone; the residual stays", async () => {
  const world = await joined();
  const [update] = world.said("update");
  await world.receipt(1, "discard", "norm");
  const residual = changeOf(1).map((value, i) => value - sentBy(update)[i]);
  assert.deepEqual(world.agent.state.residual, residual);
});

test("it trains once for a lease, also after a restart", async () => {
  const world = await joined();
  await world.say(world.topics.run);
  world.crash();
  await world.start();
  await world.say(world.topics.run);
  assert.deepEqual(world.trained, [1]);
  const updates = world.said("update");
  assert.equal(updates.at(-1).epoch, 1002);
  assert.equal(hex(updates.at(-1).body.data), hex(updates[0].body.data));
});

test("a connection that breaks before it is usable is tried again, with a new session", async () => {
  const world = new World(new MemoryStorage());
  world.publishStatus();
  world.publishRun({ lease: 1 });
  const { connect } = world;
  let tries = 0;
  world.connect = (will, events) => {
    tries += 1;
    const link = connect.call(world, will, events);
    if (tries === 1) return { ...link, subscribe: () => { events.onClose(); return new Promise(() => {}); } };
    if (tries === 2) return { ...link, subscribe: async () => { events.onClose(); } };
    return link;
  };
  await world.start();
  for (let i = 0; i < 20; i += 1) await world.tick(0.5);
  assert.equal(tries, 3);
  assert.equal(world.said("update")[0].epoch, 1003);
});

test("a connection that is lost later is made anew, and says all again", async () => {
  const world = await joined();
  world.events.onClose();
  await world.settle();
  for (let i = 0; i < 4; i += 1) await world.tick(0.5);
  assert.deepEqual(world.said("update").map(({ epoch }) => epoch), [1001, 1002]);
});

test("sessions of the past are left behind, on a new connection", async () => {
  const world = await joined();
  await world.tell("notice", { code: "old-session", detail: "", session: 1001 });
  assert.equal(world.agent.identity.session, 1001);
  await world.tell("notice", { code: "old-session", detail: "", session: 5000 });
  for (let i = 0; i < 4; i += 1) await world.tick(0.5);
  assert.deepEqual(world.said("update").map(({ epoch }) => epoch), [1001, 5001]);
  await world.tell("notice", { code: "old-session", detail: "", session: 2 ** 53 - 1 });
  assert.equal(world.agent.refused["bad-session"], 1);
  assert.equal(world.agent.identity.session, 5001);
});

test("the coordinator's new epoch makes it say all again; an old one is not believed", async () => {
  const world = await joined();
  world.epoch = 2;
  world.publishStatus();
  const before = world.heard.length;
  await world.say(world.topics.status);
  assert.deepEqual(world.heard.slice(before).map(({ kind }) => kind), ["presence", "update"]);
  world.epoch = 1;
  await world.receipt(1);
  assert.equal(world.agent.state.outbox.size, 1);
  assert.equal(world.agent.refused["old-epoch"], 1);
});

test("with four updates waiting it gives the next lease back", async () => {
  const world = await joined();
  for (let lease = 2; lease <= 5; lease += 1) await world.tell("lease", { run: "r-1", lease, version: 0, lease_s: 60 });
  assert.deepEqual(world.trained, [1, 2, 3, 4]);
  const [{ body }] = world.said("report");
  assert.deepEqual([body.code, body.lease], ["busy", 5]);
});

test("a lease whose seconds are over is not begun", async () => {
  const world = await joined();
  await world.tell("lease", { run: "r-1", lease: 2, version: 1, lease_s: 10 }); // version 1 does not come in time
  await world.tick(20);
  assert.deepEqual(world.trained, [1]);
});

test("when the run is over nothing of it is left", async () => {
  const world = await joined();
  world.publishRun({ lease: 1, state: "finished" });
  await world.say(world.topics.run);
  assert.deepEqual((await world.storage.names()).sort(), ["coordinator", "identity", "run"]);
});

/** A storage whose power goes at commit number `at`, before or after it is done. */
class Failing extends MemoryStorage {
  constructor(items, at, isDone) {
    super();
    this.items = items;
    this.left = at;
    this.isDone = isDone;
  }

  async commit(changes) {
    this.left -= 1;
    if (this.left > 0) return super.commit(changes);
    if (this.left === 0 && this.isDone) await super.commit(changes);
    return new Promise(() => {}); // nothing happens any more
  }
}

test("wherever the power goes, each lease counts once and sent + residual is all that was learned", async () => {
  for (const isDone of [false, true]) {
    for (let at = 1; at <= 16; at += 1) {
      const items = new Map();
      const world = new World(new Failing(items, at, isDone));
      world.publishStatus();
      world.publishRun({ lease: 1 });
      world.settle = async () => { for (let i = 0; i < 60; i += 1) await new Promise((resolve) => { setImmediate(resolve); }); };
      // Until the power goes.
      world.tick = async () => {
        if (world.agent !== undefined) world.agent.tick(world.now);
        await world.settle();
      };
      const accepted = new Map(); // the coordinator's: counter -> what came, counted once
      const answerAll = async () => {
        for (const { body } of world.said("update")) {
          accepted.set(body.header.counter, { lease: body.header.lease, q: sentBy({ body }) });
          if (world.events !== null && world.agent !== undefined) await world.receipt(body.header.counter);
        }
      };
      const opened = world.start();
      await Promise.race([opened, new Promise((resolve) => { setTimeout(resolve, 20); })]);
      for (let lease = 2; lease <= 3 && world.events !== null; lease += 1) {
        await answerAll();
        if (world.agent !== undefined) await world.tell("lease", { run: "r-1", lease, version: 0, lease_s: 60 });
      }
      world.crash();
      // And on again with what is on disk.
      world.storage = new Failing(items, Infinity, true);
      await world.start();
      for (let lease = 2; lease <= 4; lease += 1) {
        await answerAll();
        await world.tell("lease", { run: "r-1", lease, version: 0, lease_s: 60 });
      }
      await answerAll();
      const leases = [...accepted.values()].map(({ lease }) => lease);
      assert.equal(new Set(leases).size, leases.length, `a lease twice, power cut at commit ${at}`);
      assert.equal(world.agent.state.outbox.size, 0);
      const total = world.agent.state.residual.map((value, i) => {
        let sum = value;
        for (const { q } of accepted.values()) sum += q[i];
        return sum;
      });
      const learned = total.map((_, i) => leases.reduce((sum, lease) => sum + changeOf(lease)[i], 0));
      total.forEach((value, i) => assert.ok(Math.abs(value - learned[i]) < 1e-5, `commit ${at}, element ${i}`));
    }
  }
});

test("a journal that was left behind is carried out; half a journal is not", async () => {
  const folder = await mkdtemp(join(tmpdir(), "js-agent-"));
  try {
    const storage = await FileStorage.open(folder);
    await storage.commit({ a: Uint8Array.of(1), b: Uint8Array.of(2) });
    await writeFile(join(folder, "journal"), pack({ a: null, b: Uint8Array.of(3) }));
    const again = await FileStorage.open(folder);
    assert.deepEqual([await again.read("a"), [...(await again.read("b"))]], [null, [3]]);
    await writeFile(join(folder, "journal.tmp"), Uint8Array.of(0x81));
    assert.deepEqual([...(await (await FileStorage.open(folder)).read("b"))], [3]);
    assert.deepEqual(await again.names(), ["b"]);
  } finally {
    await rm(folder, { recursive: true });
  }
});
