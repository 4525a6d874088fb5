// The agent's life: connect, say who is there, follow the run, train once for a lease, deliver until there is a receipt.
//
// Everything that happens becomes an item in one queue and is carried out whole before the next; training alone goes on
// beside it. Time comes through `tick(now)`, seconds of a steady clock.

import { Backoff } from "./backoff.js";
import { Catchup } from "./catchup.js";
import { CODECS } from "./codecs/encode.js";
import { check, ProtocolError } from "./errors.js";
import { makeUpdate } from "./feedback.js";
import { Delivery } from "./delivery.js";
import { Identity } from "./identity.js";
import { sha256 } from "./keys.js";
import { RunState } from "./run-state.js";
import { hasTurn, isEverybodys, isSampled } from "./sampling.js";
import { chunkTopic, topicsOf } from "./topics.js";
import { Trust } from "./trust.js";

const VERSION = "js-0.1.0";
const SPEAKS = [...CODECS.map((name) => `${name}/1`), "rice/1", "grid/1", "seeded/1", "digest/1"];
const OUTBOX_LIMIT = 4;
const SILENCE_S = 300;
const SESSION_LIMIT = 2 ** 52; // no honest count comes near it

export class Agent {
  /**
   * `task`: see task.js. `storage`: see storage/. `connect(will, events)`: opens a link, see link.js.
   * `coordinatorKey`: 32 bytes or null. `now`: seconds of a steady clock; `wallClock`: seconds since 1970.
   * `log(word, details)` hears what happens.
   */
  static async open({ federation, device, task, storage, connect, coordinatorKey = null, now, wallClock, log }) {
    const agent = new Agent();
    Object.assign(agent, { task, connect, now, log, federation, device });
    agent.topics = topicsOf(federation, device);
    agent.identity = await Identity.load(storage, device, wallClock());
    agent.trust = await Trust.load(storage, { federation, device, coordinatorKey });
    agent.state = await RunState.load(storage, task.schema);
    agent.begin();
    await agent.resume();
    return agent;
  }

  begin() {
    this.link = null;
    this.isConnecting = false;
    this.isStopping = false;
    this.reconnect = new Backoff(0.25, 20);
    this.connectAt = -Infinity;
    this.trafficBefore = [0, 0]; // of earlier connections
    this.hello = new Backoff(3, 60);
    this.helloAt = Infinity;
    this.isCoordinatorAway = false;
    this.announcement = null; // of the run that is followed
    this.catchup = null; // from there on
    this.turn = [0, 0]; // epoch and sequence of the newest
    this.lease = null; // { run, lease, version, until }: to train for
    this.training = null; // promise
    this.keptVersion = -1;
    this.toldMismatch = null; // the run of which it was reported
    this.unbelieved = null; // an announcement that came before the coordinator's key was known
    this.refused = {}; // reason -> count
    this.counts = { accepted: 0, restored: 0, discarded: 0, trained: 0 };
    this.queue = Promise.resolve();
    this.delivery = new Delivery({
      say: (kind, body) => this.say(kind, body),
      packetLimit: () => this.link.packetLimit,
      traffic: () => this.traffic(),
    });
  }

  /** What an earlier life of this device left on disk. */
  async resume() {
    for (const [counter, entry] of this.state.outbox) this.delivery.add(counter, entry, this.now());
    if (this.state.run !== null) this.follow(await this.state.readReplica());
  }

  follow(replica) {
    const { run } = this.state;
    this.catchup?.cancel();
    this.keptVersion = replica?.version ?? -1;
    this.catchup = new Catchup({
      run,
      schema: this.task.schema,
      replica,
      topicOf: (chunk) => chunkTopic(this.federation, chunk),
      wire: {
        subscribe: (topic) => this.quietly(this.link?.subscribe([topic])),
        unsubscribe: (topic) => this.quietly(this.link?.unsubscribe(topic)),
        get: (body) => this.say("get", body),
        unreachable: (detail) => this.report("model-unreachable", detail),
      },
    });
  }

  // ------------------------------------------------------------------------------------------ the queue

  /** Do `job` after all that came before. What was wrong with a message is counted and otherwise without effect. */
  enqueue(job) {
    this.queue = this.queue.then(job).catch((error) => {
      if (!(error instanceof ProtocolError)) {
        this.log("failed", { error });
        return;
      }
      this.refused[error.reason] = (this.refused[error.reason] ?? 0) + 1;
      this.log("refused", { reason: error.message });
    });
    return this.queue;
  }

  /** What breaks with its connection is repeated on the next one. */
  quietly(promise) {
    promise?.catch?.(() => {});
  }

  // ------------------------------------------------------------------------------------------ the connection

  /** To be called a few times a second. */
  tick(now) {
    if (this.isStopping) return this.queue;
    return this.enqueue(async () => {
      if (this.link === null) {
        if (now >= this.connectAt && !this.isConnecting) this.openLink();
        return;
      }
      this.delivery.tick(now);
      if (this.announcement !== null) this.catchup.tick(now);
      if (now >= this.helloAt) this.sayHello(now);
      await this.progress(now);
    });
  }

  async openLink() {
    this.isConnecting = true;
    let link = null;
    let breakOff;
    let isGone = false;
    const gone = new Promise((_, reject) => { breakOff = reject; });
    gone.catch(() => {}); // after the race below nobody waits for it
    try {
      await this.identity.nextSession();
      const will = { topic: this.topics.presence, payload: this.sealPresence(false, true) };
      link = await this.connect(will, {
        onMessage: (topic, payload) => this.enqueue(() => this.receive(topic, payload)),
        onClose: () => {
          isGone = true;
          breakOff(new Error("connection lost"));
          this.enqueue(() => this.closed(link));
        },
      });
      await Promise.race([link.subscribe([this.topics.status, this.topics.turn, this.topics.run, this.topics.down]), gone]);
      await this.enqueue(() => { if (!isGone && !this.isStopping) this.opened(link); });
      if (this.link !== link) throw new Error("connection lost");
    } catch (error) {
      link?.abort();
      if (!this.isStopping) this.log("no connection", { error: error.message });
      this.connectAt = this.now() + this.reconnect.next();
    } finally {
      this.isConnecting = false;
    }
  }

  opened(link) {
    this.link = link;
    this.reconnect.reset();
    this.log("connected", { session: this.identity.session });
    this.sayPresence();
    this.startAfresh(this.now());
    if (this.announcement !== null) this.catchup.reconnected(this.now());
  }

  closed(link) {
    if (link === null || this.link !== link) return;
    this.trafficBefore = this.traffic();
    this.link = null;
    this.connectAt = this.now() + this.reconnect.next();
    if (!this.isStopping) this.log("connection lost", {});
  }

  /** Say goodbye and stop. What has no receipt stays in the storage. */
  async stop() {
    this.isStopping = true;
    await this.queue;
    if (this.link === null) return;
    await this.link.publish(this.topics.presence, this.sealPresence(false), { retain: true });
    await this.link.close();
    this.link = null;
  }

  // ------------------------------------------------------------------------------------------ what it says

  say(kind, body) {
    if (this.link === null) return;
    const topic = this.topics.up(kind === "upload_chunk" ? "chunk" : kind);
    this.quietly(this.link.publish(topic, this.identity.seal(topic, kind, body)));
  }

  /** The version of the model that is held, or null. */
  get replica() {
    return this.announcement === null ? null : this.catchup.replica;
  }

  /** Bytes sent and received since the program started. */
  traffic() {
    return this.trafficBefore.map((count, i) => count + (this.link?.traffic[i] ?? 0));
  }

  /** A last will, sealed beforehand, has no traffic. */
  sealPresence(online, isWill = false) {
    return this.identity.seal(this.topics.presence, "presence", {
      online,
      session: this.identity.session,
      public_key: this.identity.publicKey,
      agent_version: VERSION,
      tasks: [this.task.ref],
      codecs: SPEAKS,
      num_examples: this.task.numExamples,
      traffic: isWill ? undefined : this.traffic(),
    });
  }

  sayPresence() {
    this.quietly(this.link.publish(this.topics.presence, this.sealPresence(true), { retain: true }));
  }

  sayHello(now) {
    this.sayPresence();
    this.say("hello", { run: this.announcement?.run, version: this.replica?.version });
    this.helloAt = now + this.hello.next(this.isCoordinatorAway);
  }

  /** `lease`, where one is given back. */
  report(code, detail, lease = undefined) {
    this.log("report", { code, detail, lease });
    this.say("report", { code, detail: detail.slice(0, 1024), run: this.state.run ?? undefined, lease });
  }

  /** After connecting, at a new epoch, when the coordinator comes back: updates again, and soon a hello. */
  startAfresh(now) {
    this.delivery.restart(now);
    this.delivery.tick(now);
    this.hello.reset();
    this.helloAt = now + this.hello.next(this.isCoordinatorAway);
  }

  // ------------------------------------------------------------------------------------------ what it hears

  async receive(topic, payload) {
    if (payload.length === 0) return;
    if (topic === this.topics.run && this.trust.publicKey === null) this.unbelieved = payload;
    const message = await this.trust.verify(topic, payload);
    const now = this.now();
    if (message.isNewEpoch && this.link !== null) {
      this.delivery.newEpoch(now);
      this.sayPresence();
      this.startAfresh(now);
    }
    const { body } = message;
    switch (message.kind) {
      case "status": await this.hearStatus(body, message.isNewEpoch, now); break;
      case "announcement": await this.hearAnnouncement(message, now); break;
      case "turn": this.hearTurn(message, now); break;
      case "lease": this.hearLease(body, now); break;
      case "chunk": this.hearChunk(body, message.parsed, now); break;
      case "receipt": await this.hearReceipt(body); break;
      case "credit": if (body.run === this.state.run) this.delivery.credit(body, now); break;
      case "notice": this.hearNotice(body); break;
      default: break;
    }
    await this.progress(now);
  }

  async hearStatus({ online }, isNewEpoch, now) {
    const isBack = online && this.isCoordinatorAway;
    this.isCoordinatorAway = !online;
    this.delivery.seldom = !online;
    if (isBack && !isNewEpoch && this.link !== null) {
      this.sayPresence();
      this.startAfresh(now);
    }
    const early = this.unbelieved;
    this.unbelieved = null;
    if (early !== null) await this.receive(this.topics.run, early);
  }

  /** Whose turn it is to send updates, in a large fleet. */
  hearTurn({ epoch, sequence, body }, now) {
    const isOlder = epoch < this.turn[0] || (epoch === this.turn[0] && sequence < this.turn[1]);
    check(!isOlder, "old-turn", `${epoch}, ${sequence}`);
    this.turn = [epoch, sequence];
    this.delivery.takeTurn(isEverybodys(body) ? "free" : hasTurn(body, this.device) ? "mine" : "waits", now);
    if (this.link !== null) this.delivery.tick(now);
  }

  async hearAnnouncement({ epoch, sequence, body }, now) {
    const { announced } = this.state;
    const isOlder = epoch < announced.epoch || (epoch === announced.epoch && sequence < announced.sequence);
    check(!isOlder, "old-announcement", `${epoch}, ${sequence}`);
    this.delivery.announced();
    this.helloAt = now + SILENCE_S;
    await this.state.keepAnnounced(epoch, sequence);
    if (body.state !== "running") {
      if (body.run === this.state.run) await this.leave(body);
      return;
    }
    if (!this.isOurTask(body)) return;
    if (body.run !== this.state.run) {
      await this.state.follow(body.run);
      this.delivery.clear();
      this.announcement = null;
      if (this.lease?.run !== body.run) this.lease = null;
      this.follow(null);
    }
    this.announcement = body;
    this.log("announced", { run: body.run, round: body.round, version: body.manifest.version, lease: body.lease });
    if (this.isInCohort(body)) {
      this.offerLease({ run: body.run, lease: body.lease, version: body.manifest.version, until: now + body.lease_s });
    }
    this.catchup.aim(body.manifest, body.inline_delta, now);
  }

  isOurTask({ run, task }) {
    const { ref } = this.task;
    if (task.name !== ref.name) return false;
    if (task.version === ref.version && task.schema_hash === ref.schema_hash) return true;
    if (this.toldMismatch !== run) this.report("task-mismatch", `here ${ref.name} has version ${ref.version}, schema ${ref.schema_hash}`);
    this.toldMismatch = run;
    return false;
  }

  isInCohort({ cohort, round }) {
    if (cohort.devices !== undefined) return cohort.devices.includes(this.device);
    return isSampled(cohort.seed, round, this.device, cohort.rate);
  }

  async leave({ run, state }) {
    this.log("run over", { run, state });
    await this.state.follow(null);
    this.catchup.cancel();
    this.delivery.clear();
    this.announcement = null;
    this.lease = null;
  }

  hearLease({ run, lease, version, lease_s: leaseS }, now) {
    if (this.announcement?.run !== run) this.helloAt = now;
    this.offerLease({ run, lease, version, until: now + leaseS });
  }

  /** Of several leases the highest counts. */
  offerLease(lease) {
    if (lease.run === this.state.run && lease.lease <= this.state.leaseTaken) return;
    if (this.lease === null || this.lease.run !== lease.run || lease.lease >= this.lease.lease) this.lease = lease;
  }

  hearChunk(body, topic, now) {
    if (topic.what === "chunk") {
      const fits = ["run", "version", "blob", "index"].every((name) => body[name] === topic[name]);
      check(fits, "bad-chunk", "on another chunk's topic");
    }
    if (this.announcement !== null) this.catchup.take(body, now);
  }

  /** Where our sessions are of the past, since the storage was lost: connect anew, above those that are known. */
  hearNotice(notice) {
    this.log("notice", notice);
    const { session } = notice;
    if (session === undefined || session <= this.identity.session || this.link === null) return;
    check(session <= SESSION_LIMIT, "bad-session", `${session}`);
    this.identity.overtakenBy = session;
    this.link.abort();
  }

  async hearReceipt(receipt) {
    if (!(await this.state.settle(receipt))) return;
    this.delivery.remove(receipt.counter);
    const word = { keep: "accepted", restore: "restored", discard: "discarded" }[receipt.residual];
    this.counts[word] += 1;
    const { counter, reason, detail } = receipt;
    this.log("receipt", { counter, outcome: word, reason, detail });
  }

  // ------------------------------------------------------------------------------------------ training

  /** Keep what is new on disk, and train if that is due. */
  async progress(now) {
    if (this.announcement === null || !this.catchup.isComplete) return;
    const { replica } = this.catchup;
    if (replica.version !== this.keptVersion) {
      this.keptVersion = replica.version;
      await this.state.keepReplica(replica);
      this.log("version", { run: this.state.run, version: replica.version });
    }
    const { lease } = this;
    if (this.training !== null || lease === null || lease.run !== this.state.run || replica.version < lease.version) return;
    this.lease = null;
    if (lease.lease <= this.state.leaseTaken || now >= lease.until) return;
    if (this.state.outbox.size >= OUTBOX_LIMIT) {
      await this.state.takeLease(lease.lease);
      this.report("busy", `${OUTBOX_LIMIT} updates wait for a receipt`, lease.lease);
      return;
    }
    this.trainingLease = lease.lease;
    this.training = this.train(lease, replica, this.announcement, now).finally(() => { this.training = null; });
  }

  async train({ run, lease }, replica, announcement, began) {
    try {
      const evaluation = announcement.evaluate ? this.task.evaluate(replica) : null;
      const { weights, metrics } = await this.task.train(replica, announcement.train);
      await this.enqueue(() => this.finish({ run, lease, replica, announcement, began, evaluation, weights, metrics }));
    } catch (error) {
      await this.enqueue(async () => {
        if (this.state.run !== run) return;
        await this.state.takeLease(lease);
        this.report("train-failed", String(error.message), lease);
      });
    }
  }

  async finish({ run, lease, replica, announcement, began, evaluation, weights, metrics }) {
    if (this.state.run !== run || lease <= this.state.leaseTaken) return;
    const change = weights.map((value, i) => value - replica.weights[i]);
    const { blob, residual, dropped } = makeUpdate(change, this.state.residual, announcement.upload, this.state.made);
    const header = {
      run,
      counter: this.state.counterFor(lease),
      lease,
      base_version: replica.version,
      schema_hash: this.task.schema.hash,
      num_examples: this.task.numExamples,
      payload: { size: blob.length, sha256: sha256(blob) },
      train_s: Math.max(0, this.now() - began),
      metrics,
      evaluation: evaluation === null ? undefined : { version: replica.version, ...evaluation },
      residual_dropped: dropped,
    };
    await this.state.commitUpdate(header, blob, residual);
    this.counts.trained += 1;
    this.log("trained", { counter: header.counter, lease, base: replica.version, bytes: blob.length, ...metrics });
    this.delivery.add(header.counter, { header, data: blob }, this.now());
    if (this.link !== null) this.delivery.tick(this.now());
  }
}
