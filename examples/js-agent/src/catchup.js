// From the version that is held to the one that was announced: which blobs, which chunks, in which order.

import { Backoff } from "./backoff.js";
import { Assembly } from "./chunks.js";
import { equal } from "./bytes.js";
import { check, ProtocolError } from "./errors.js";
import { sha256 } from "./keys.js";
import { Replica } from "./replica.js";

const AT_A_TIME = 4;
const FIRST_WAIT_S = 2;
const ATTEMPTS_FOR_A_DELTA = 3;
const ATTEMPTS_BEFORE_REPORT = 4;

const keyOf = ({ version, blob }) => `${version}/${blob}`;

export class Catchup {
  /**
   * `wire` carries out what is wanted: subscribe(topic), unsubscribe(topic), get(body), unreachable(detail).
   * `topicOf({ run, version, blob, index })` names a chunk's topic.
   */
  constructor({ run, schema, wire, topicOf, replica = null }) {
    Object.assign(this, { run, schema, wire, topicOf, replica });
    this.manifest = null;
    this.inline = null;
    this.assemblies = new Map(); // by version and blob
    this.underWay = new Map(); // topic -> { request, asked, due, backoff, attempts }
    this.paceS = 0; // how long the last chunk took: who is slow is not asked twice
    this.startOverBackoff = new Backoff(2, 300);
    this.notBefore = -Infinity;
    this.wantsSnapshot = false;
    this.isUnreachable = false;
    this.hasStartedOver = false;
  }

  get isComplete() {
    return this.manifest !== null && this.replica?.version === this.manifest.version && this.isSameChain();
  }

  isSameChain() {
    return equal(this.replica.chainHash, this.manifest.chain_hash);
  }

  /** Aim at the version of `manifest`; `inline` are the bytes of its delta where they came along. */
  aim(manifest, inline, now) {
    if (inline !== undefined) {
      const isPromised = manifest.delta?.size === inline.length && equal(sha256(inline), manifest.delta.sha256);
      check(isPromised, "bad-hash", "the delta in an announcement");
    }
    const isNew = this.manifest === null || !equal(manifest.chain_hash, this.manifest.chain_hash);
    this.manifest = manifest;
    this.inline = inline ?? (isNew ? null : this.inline);
    if (isNew) this.wantsSnapshot = false;
    if (this.replica !== null && (this.replica.version > manifest.version || this.isFork())) this.replica = null;
    this.proceed(now);
  }

  isFork() {
    return this.replica.version === this.manifest.version && !this.isSameChain();
  }

  /** The blobs that lead to the announced version, in the order in which they are applied. */
  route() {
    const { version, base } = this.manifest;
    const held = this.replica?.version;
    const byDeltas = held !== undefined && !this.wantsSnapshot && (held >= base || held + 1 === version);
    const out = byDeltas ? [] : [{ version: base, blob: "snapshot" }];
    for (let v = (byDeltas ? held : base) + 1; v <= version; v += 1) out.push({ version: v, blob: "delta" });
    return out;
  }

  assemblyOf(step) {
    const { manifest } = this;
    const key = keyOf(step);
    if (!this.assemblies.has(key)) {
      const { chain_hash: chainHash, rebase, replica_hash: replicaHash } = manifest;
      const isNewest = step.version === manifest.version;
      if (step.blob === "snapshot") {
        const promised = isNewest ? { chain_hash: chainHash, replica_hash: replicaHash } : null;
        this.assemblies.set(key, new Assembly({ largest: manifest.snapshot.size, ref: manifest.snapshot, promised }));
      } else if (isNewest) {
        const promised = { chain_hash: chainHash, rebase, replica_hash: replicaHash };
        this.assemblies.set(key, new Assembly({ largest: manifest.delta.size, ref: manifest.delta, promised }));
      } else this.assemblies.set(key, new Assembly({ largest: manifest.chain_bytes }));
    }
    return this.assemblies.get(key);
  }

  hasInline(step) {
    return this.inline !== null && step.blob === "delta" && step.version === this.manifest.version;
  }

  /** Ask for what is lacking; when nothing is, apply it all. */
  proceed(now) {
    if (this.manifest === null || this.isComplete || now < this.notBefore) return;
    const route = this.route();
    this.forgetAllBut(route);
    const lacking = route.filter((step) => !this.hasInline(step) && !this.assemblyOf(step).isComplete);
    if (lacking.length === 0) {
      this.apply(route, now);
      return;
    }
    for (const step of lacking) {
      for (const index of this.assemblyOf(step).missing()) {
        if (this.underWay.size >= AT_A_TIME) return;
        this.request({ run: this.run, version: step.version, blob: step.blob, index }, now);
      }
    }
  }

  forgetAllBut(route) {
    const wanted = new Set(route.map(keyOf));
    for (const key of [...this.assemblies.keys()]) if (!wanted.has(key)) this.assemblies.delete(key);
    for (const [topic, { request }] of [...this.underWay]) if (!wanted.has(keyOf(request))) this.finish(topic);
  }

  request(request, now) {
    const topic = this.topicOf(request);
    if (this.underWay.has(topic)) return;
    const backoff = new Backoff(Math.max(FIRST_WAIT_S, 2 * this.paceS), 60);
    this.underWay.set(topic, { request, backoff, asked: now, due: now + backoff.next(), attempts: 0 });
    this.wire.subscribe(topic);
  }

  finish(topic) {
    if (this.underWay.delete(topic)) this.wire.unsubscribe(topic);
  }

  /** A chunk that came, on its own topic or on ours. */
  take(chunk, now) {
    if (chunk.run !== this.run) return;
    const assembly = this.assemblies.get(keyOf(chunk));
    const topic = this.topicOf(chunk);
    this.keepPace(this.underWay.get(topic), now);
    this.finish(topic);
    if (assembly === undefined) return;
    assembly.add(chunk);
    this.isUnreachable = false;
    this.proceed(now);
  }

  /** The others come over the same connection, one after the other: their waits begin anew. */
  keepPace(waiting, now) {
    if (waiting === undefined) return;
    this.paceS = Math.min(30, now - waiting.asked);
    for (const other of this.underWay.values()) other.due = Math.max(other.due, now + FIRST_WAIT_S + this.paceS);
  }

  apply(route, now) {
    try {
      let { replica } = this;
      for (const step of route) {
        const inline = this.hasInline(step);
        const blob = inline ? this.inline : this.assemblyOf(step).join();
        const facts = inline ? this.manifest : this.assemblyOf(step).facts;
        if (step.blob === "snapshot") replica = Replica.fromSnapshot(blob, step.version, facts, this.schema);
        else replica = replica.advance(blob, facts, this.schema);
      }
      check(equal(replica.chainHash, this.manifest.chain_hash), "bad-chain", "of the announced version");
      this.replica = replica;
      this.startOverBackoff.reset();
      this.assemblies.clear();
      this.wantsSnapshot = false;
    } catch (error) {
      if (error instanceof ProtocolError) {
        this.startOver(now);
        this.proceed(now);
      }
      throw error;
    }
  }

  /** Drop all that is held of the model and fetch the snapshot, not at once if that goes on. */
  startOver(now) {
    this.replica = null;
    this.inline = null;
    this.cancel();
    this.notBefore = this.hasStartedOver ? now + this.startOverBackoff.next() : now;
    this.hasStartedOver = true;
  }

  /** Nothing more is wanted. */
  cancel() {
    this.assemblies.clear();
    for (const topic of [...this.underWay.keys()]) this.finish(topic);
  }

  /** After a reconnect nothing is under way any more; what is there is kept. */
  reconnected(now) {
    this.underWay.clear();
    this.proceed(now);
  }

  tick(now) {
    for (const waiting of this.underWay.values()) {
      if (now < waiting.due) continue;
      waiting.attempts += 1;
      waiting.due = now + waiting.backoff.next();
      if (waiting.request.blob === "delta" && waiting.attempts === ATTEMPTS_FOR_A_DELTA) this.wantsSnapshot = true;
      if (waiting.attempts === ATTEMPTS_BEFORE_REPORT && !this.isUnreachable) {
        this.isUnreachable = true;
        this.wire.unreachable(`no answer for ${this.topicOf(waiting.request)}`);
      }
      this.wire.get(waiting.request);
    }
    this.proceed(now);
  }
}
