// packet = msgpack [content, signature]; content = msgpack [1, kind, sender, epoch, sequence, key_id, body].

import { concat, equal, utf8 } from "./bytes.js";
import { check } from "./errors.js";
import { keyIdOf, sign, verify } from "./keys.js";
import { pack, unpack } from "./msgpack.js";

const VERSION = 1;
const LARGEST = 2 ** 24;

const signedBytes = (topic, content) => concat(utf8(topic), Uint8Array.of(0), content);
const isCount = (x) => Number.isSafeInteger(x) && x >= 0;

/** A signed packet for `topic`. `body` is a map whose floats are wrapped. `key` is `{ secret, id }`. */
export function seal(topic, { kind, sender, epoch, sequence, body }, key) {
  const content = pack([VERSION, kind, sender, epoch, sequence, key.id, body]);
  return pack([content, sign(signedBytes(topic, content), key.secret)]);
}

/** The parts of a packet whose form is right; nothing is verified yet. */
export function open(packet) {
  check(packet.length <= LARGEST, "too-large", "packet");
  const outer = unpack(packet, 1);
  check(Array.isArray(outer) && outer.length === 2, "malformed", "packet");
  const [content, signature] = outer;
  check(content instanceof Uint8Array && signature instanceof Uint8Array, "malformed", "packet");
  check(signature.length === 64, "malformed", "signature");
  const fields = unpack(content);
  check(Array.isArray(fields) && Number.isInteger(fields[0]), "malformed", "content");
  check(fields[0] === VERSION, "protocol-version", `version ${fields[0]}`);
  check(fields.length === 7, "malformed", "content");
  const [, kind, sender, epoch, sequence, keyId, body] = fields;
  check(typeof kind === "string" && typeof sender === "string" && sender.length <= 64, "malformed", "content");
  check(isCount(epoch) && isCount(sequence), "malformed", "counters");
  check(keyId instanceof Uint8Array && keyId.length === 8, "malformed", "key id");
  check(body !== null && typeof body === "object" && Object.getPrototypeOf(body) === null, "malformed", "body");
  return { kind, sender, epoch, sequence, keyId, body, content, signature };
}

/** Whether an opened packet was signed for `topic` with `publicKey`. */
export function isSignedBy(opened, topic, publicKey) {
  return (
    equal(opened.keyId, keyIdOf(publicKey)) &&
    verify(opened.signature, signedBytes(topic, opened.content), publicKey)
  );
}
