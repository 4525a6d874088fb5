// The topics of a federation: what a device publishes and subscribes to, and what a topic is for.

import { check } from "./errors.js";

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const CHUNK = /^([ds])(0|[1-9][0-9]{0,4})$/;
const VERSION = /^(0|[1-9][0-9]{0,15})$/;
const UP = new Set(["hello", "update", "offer", "chunk", "report", "get"]);
const DOWN = new Set(["announcement", "lease", "receipt", "credit", "chunk", "notice"]);

export const isName = (text) => NAME.test(text);

const rootOf = (federation) => `fedmq/v1/${federation}/`;

export function chunkTopic(federation, { run, version, blob, index }) {
  return `${rootOf(federation)}model/${run}/${version}/${blob === "delta" ? "d" : "s"}${index}`;
}

/** All that one device publishes and subscribes to, but chunks. */
export function topicsOf(federation, device) {
  if (!isName(federation) || !isName(device)) throw new RangeError("a name has a-z 0-9 . _ - and at most 64 of them");
  const root = rootOf(federation);
  return {
    status: `${root}coordinator/status`,
    run: `${root}coordinator/run`,
    turn: `${root}coordinator/turn`,
    presence: `${root}dev/${device}/presence`,
    up: (kind) => `${root}dev/${device}/up/${kind}`,
    down: `${root}dev/${device}/down/+`,
  };
}

function readDevice([device, way, kind, ...more]) {
  if (!isName(device) || more.length > 0) return null;
  if (way === "presence" && kind === undefined) return { what: "presence", device };
  if (way === "up" && UP.has(kind)) return { what: "up", device, kind };
  if (way === "down" && DOWN.has(kind)) return { what: "down", device, kind };
  return null;
}

function readChunk([run, version, name, ...more]) {
  const chunk = CHUNK.exec(name ?? "");
  if (!isName(run ?? "") || !VERSION.test(version ?? "") || chunk === null || more.length > 0) return null;
  const [number, index] = [Number(version), Number(chunk[2])];
  if (!Number.isSafeInteger(number) || index > 65535) return null;
  return { what: "chunk", run, version: number, blob: chunk[1] === "d" ? "delta" : "snapshot", index };
}

function readRest(rest) {
  if (rest === "coordinator/status") return { what: "status" };
  if (rest === "coordinator/run") return { what: "announcement" };
  if (rest === "coordinator/turn") return { what: "turn" };
  const [first, ...parts] = rest.split("/");
  if (first === "dev") return readDevice(parts);
  return first === "model" ? readChunk(parts) : null;
}

/** What `topic` is for: `{ what, device?, kind?, run?, version?, blob?, index? }`. Throws a ProtocolError. */
export function parseTopic(federation, topic) {
  const root = rootOf(federation);
  const parsed = topic.startsWith(root) ? readRest(topic.slice(root.length)) : null;
  check(parsed !== null, "unknown-topic", topic);
  return parsed;
}
