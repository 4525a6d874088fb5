// What is checked of every packet, in the protocol's order: topic, form, version, kind and body, sender, signature.

import { equal } from "./bytes.js";
import { isSignedBy, open } from "./envelope.js";
import { check } from "./errors.js";
import { BODIES } from "./messages.js";
import { parseTopic } from "./topics.js";

const COORDINATOR = "coordinator";

/** The kind that the coordinator says on a topic which a device listens to. */
function kindFor(parsed, device) {
  if (parsed.what !== "down") return parsed.what;
  return parsed.device === device ? parsed.kind : null;
}

/**
 * A message of the coordinator's: `{ kind, epoch, sequence, body, raw, parsed }`, `raw` the body as it was on the wire.
 * `key`: the coordinator's, or null if it is not known yet, when only a `status` is believed. Throws a ProtocolError.
 */
export function readFromCoordinator({ federation, device, key }, topic, packet) {
  const parsed = parseTopic(federation, topic);
  const expected = kindFor(parsed, device);
  check(["status", "announcement", "turn", "chunk", "lease", "receipt", "credit", "notice"].includes(expected), "unknown-topic", topic);
  const opened = open(packet);
  const { kind, sender, epoch, sequence } = opened;
  check(kind in BODIES, "unknown-kind", kind);
  const body = BODIES[kind].read(opened.body);
  check(kind === expected, "wrong-kind", `${kind} on ${topic}`);
  check(sender === COORDINATOR, "wrong-sender", sender);
  const trusted = key ?? (kind === "status" ? body.public_key : null);
  check(trusted !== null, "key-unknown", topic);
  check(isSignedBy(opened, topic, trusted), "bad-signature", topic);
  if (kind === "status") {
    check(equal(body.public_key, trusted), "bad-signature", "another key in the status");
    check(body.session === epoch, "malformed", "a status of another epoch");
  }
  return { kind, sender, epoch, sequence, body, raw: opened.body, parsed, key: trusted };
}

/** A device's message, as the coordinator checks it: the other side, for the vectors. */
export function readFromDevice({ federation, keyOf }, topic, packet) {
  const parsed = parseTopic(federation, topic);
  check(parsed.what === "presence" || parsed.what === "up", "unknown-topic", topic);
  const opened = open(packet);
  const { kind, sender, epoch, sequence } = opened;
  check(kind in BODIES, "unknown-kind", kind);
  const body = BODIES[kind].read(opened.body);
  const expected = parsed.what === "presence" ? "presence" : parsed.kind === "chunk" ? "upload_chunk" : parsed.kind;
  check(kind === expected && sender === parsed.device, "wrong-topic", `${kind} of ${sender} on ${topic}`);
  check(isSignedBy(opened, topic, keyOf(sender)), "bad-signature", topic);
  if (kind === "presence") check(body.session === epoch, "bad-session", "session and epoch");
  return { kind, sender, epoch, sequence, body, raw: opened.body, parsed };
}
