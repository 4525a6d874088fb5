// Updates on their way: whole or in chunks, and again until there is a receipt.

import { Backoff } from "./backoff.js";
import { isInList, split } from "./chunks.js";
import { check } from "./errors.js";

const PACKET = 131072;
const ROOM = 2048; // for everything in a packet but a chunk's data
const SMALLEST_CHUNK = 1024;
const PATIENCE_S = 60;

export class Delivery {
  /** `say(kind, body)` publishes; `packetLimit()` is the broker's; `traffic()` as in the header. */
  constructor({ say, packetLimit, traffic }) {
    Object.assign(this, { say, packetLimit, traffic });
    this.sending = new Map(); // counter -> { entry, due, backoff, chunkBytes, underWay }
    this.seldom = false; // while the coordinator is away
    this.turn = "free"; // or "mine": one update at a time; or "waits": none is begun
    this.knowsTurns = false; // whether the coordinator has spoken of turns, in its present epoch
    this.patientUntil = 0; // without a word of turns until then, we send all the same
  }

  add(counter, entry, now) {
    this.sending.set(counter, { entry, due: now, backoff: new Backoff(5, 60), chunkBytes: null, underWay: new Set() });
  }

  remove(counter) {
    this.sending.delete(counter);
  }

  clear() {
    this.sending.clear();
  }

  /** On connecting, at a new epoch, when the coordinator comes back: all of it again, now. */
  restart(now) {
    for (const item of this.sending.values()) {
      item.backoff.reset();
      item.due = now;
      item.sent = false;
      item.chunkBytes = null; // credits for earlier offers are ignored
    }
  }

  /** The coordinator says whether we may send. */
  takeTurn(turn, now) {
    Object.assign(this, { turn, knowsTurns: true, patientUntil: now + PATIENCE_S });
  }

  /** Who has heard of turns waits for the new coordinator's, which come before its announcement. */
  newEpoch(now) {
    if (this.knowsTurns) Object.assign(this, { turn: "waits", knowsTurns: false, patientUntil: now + PATIENCE_S });
  }

  announced() {
    if (!this.knowsTurns) this.turn = "free";
  }

  tick(now) {
    if (this.turn === "waits" && now < this.patientUntil) return;
    let items = [...this.sending.values()];
    if (this.turn !== "free") { // one at a time, whoever is due for longest: one without an answer holds up no other
      if (items.some(({ sent, due }) => sent && now < due)) return;
      items = items.sort((one, other) => one.due - other.due).slice(0, 1);
    }
    for (const item of items) {
      if (now < item.due) continue;
      item.sent = true;
      item.due = now + item.backoff.next(this.seldom);
      this.send(item);
    }
  }

  send(item) {
    const { data } = item.entry;
    const header = { ...item.entry.header, traffic: this.traffic() };
    const room = Math.min(PACKET, this.packetLimit()) - ROOM;
    if (data.length <= room) {
      this.say("update", { header, data });
      return;
    }
    item.chunkBytes = Math.max(SMALLEST_CHUNK, room);
    item.underWay.clear();
    this.say("offer", { header, chunk_bytes: item.chunkBytes });
  }

  /** The coordinator says which chunks it has, and how many may be under way. */
  credit({ counter, have, window }, now) {
    const item = this.sending.get(counter);
    if (item === undefined || item.chunkBytes === null || window === 0) return;
    const { header, data } = item.entry;
    const parts = split(data, item.chunkBytes);
    check(have.length === Math.ceil(parts.length / 8), "bad-credit", "have-list");
    item.backoff.reset();
    item.due = now + item.backoff.next(this.seldom);
    for (const index of [...item.underWay]) if (isInList(have, index)) item.underWay.delete(index);
    for (let index = 0; index < parts.length && item.underWay.size < window; index += 1) {
      if (isInList(have, index) || item.underWay.has(index)) continue;
      item.underWay.add(index);
      this.say("upload_chunk", { run: header.run, counter, index, data: parts[index] });
    }
  }
}
