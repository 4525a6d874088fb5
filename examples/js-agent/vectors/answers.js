// The questions of protocol/vectors, answered with the agent's own modules.

import { addTo, applyDelta, decodeSnapshot, decodeUpdate, encodeUpdate, firstChainHash, rebase } from "../src/blobs.js";
import { concat, hex, unhex, utf8 } from "../src/bytes.js";
import { Pieces, split } from "../src/chunks.js";
import { decodeGrid, E, G } from "../src/codecs/grid.js";
import { decode, dense } from "../src/codecs/decode.js";
import { decodeRecipe } from "../src/codecs/seeded.js";
import { check } from "../src/errors.js";
import { subtractSent } from "../src/feedback.js";
import { bytesFromFloats, floatsFromBytes } from "../src/float32.js";
import { readFromCoordinator, readFromDevice } from "../src/incoming.js";
import { keyIdOf, publicKeyOf, sha256, sign } from "../src/keys.js";
import { drawOf, hasTurn, isSampled, placeOf } from "../src/sampling.js";
import { Schema } from "../src/schema.js";
import { chunkTopic, isName, parseTopic } from "../src/topics.js";
import { Replays } from "../src/trust.js";
import { answerDevice } from "./device.js";
import { toJson } from "./json.js";

const floats = (text) => floatsFromBytes(unhex(text));
const fromFloats = (values) => hex(bytesFromFloats(values));

function open({ as, federation, device, keys, topic, packet }) {
  const keyOf = (sender) => (keys[sender] === undefined ? new Uint8Array(32) : unhex(keys[sender]));
  const read = as === "device" ? readFromCoordinator : readFromDevice;
  const { kind, sender, epoch, sequence, body } = read({ federation, device, key: keyOf("coordinator"), keyOf }, topic, unhex(packet));
  return { kind, sender, epoch, sequence, body: toJson(body) };
}

const replicaJson = ({ weights, buffers }) => {
  const bytes = concat(bytesFromFloats(weights), bytesFromFloats(buffers));
  return { replica: hex(bytes), replica_hash: hex(sha256(bytes)) };
};

function splitReplica(bytes, schema) {
  const values = floatsFromBytes(bytes);
  const end = schema.parameters + schema.frozen;
  return { weights: values.slice(0, end), buffers: values.slice(end) };
}

function assemble({ size, sha256: hash, chunk_bytes: chunkBytes, chunks }) {
  const pieces = new Pieces({ size, sha256: unhex(hash) }, chunkBytes);
  const taken = chunks.map(({ index, data }) => pieces.add(index, unhex(data)));
  const whole = pieces.isComplete ? { data: hex(pieces.join()) } : {};
  return { taken, have: hex(pieces.haveList()), missing: pieces.missing(), ...whole };
}

/** change + residual of the parameters. */
function wanted(change, residual, { parameters }) {
  return floats(residual).map((value, i) => value + floats(change)[i] * (i < parameters ? 1 : 0));
}

const ANSWERS = {
  topic: ({ federation, topic }) => parseTopic(federation, topic),
  chunk_topic: ({ federation, ...chunk }) => ({ topic: chunkTopic(federation, chunk) }),
  name: ({ name }) => ({ usable: isName(name) }),
  key: ({ private: secret }) => {
    const key = publicKeyOf(unhex(secret));
    return { public: hex(key), key_id: hex(keyIdOf(key)) };
  },
  sign: ({ private: secret, topic, content }) => ({
    signature: hex(sign(concat(utf8(topic), Uint8Array.of(0), unhex(content)), unhex(secret))),
  }),
  open,
  replays: ({ window, packets }) => {
    const replays = new Replays(window);
    return { taken: packets.map(([epoch, sequence]) => replays.take(epoch, sequence)) };
  },
  schema: ({ entries }) => {
    const { hash, parameters, frozen, buffers } = new Schema(entries);
    return { hash, parameters, frozen, buffers };
  },
  sample: ({ seed, round, device, rate }) => ({
    fraction: drawOf(unhex(seed), round, device),
    member: isSampled(unhex(seed), round, device, rate),
  }),
  turn: ({ start, span, device }) => ({ place: placeOf(device), mine: hasTurn({ start, span }, device) }),
  split: ({ data, chunk_bytes: chunkBytes }) => {
    const bytes = unhex(data);
    return { size: bytes.length, sha256: hex(sha256(bytes)), chunks: split(bytes, chunkBytes).map(hex) };
  },
  assemble,
  chain: ({ sha256: hashes }) => {
    const chain = [];
    for (const hash of hashes) chain.push(sha256(concat(chain.at(-1) ?? new Uint8Array(32), unhex(hash))));
    return { chain: chain.map(hex) };
  },
  decode: ({ n, payload, shapes }) => ({ values: fromFloats(dense(decode(unhex(payload), n, { shapes }), n)) }),
  indices: ({ shapes, k, section }) => ({ indices: [...decodeGrid(unhex(section), k, shapes)] }),
  grid_tables: () => ({ G: [...G], E: [...E] }),
  recipe: ({ n, payload }) => {
    const { values, rebaseTag } = decodeRecipe(unhex(payload), n);
    return { values: fromFloats(values), rebase: rebaseTag };
  },
  snapshot: ({ entries, snapshot }) => {
    const blob = unhex(snapshot);
    const replica = decodeSnapshot(blob, new Schema(entries));
    return { ...replicaJson(replica), chain_hash: hex(firstChainHash(blob)), rebase: replica.codec };
  },
  delta: ({ entries, replica, delta, rebase: codec }) => {
    const schema = new Schema(entries);
    const held = splitReplica(unhex(replica), schema);
    applyDelta(held, unhex(delta), schema);
    if (codec !== undefined && codec !== null) rebase(held, codec);
    return replicaJson(held);
  },
  update: ({ entries, update }) => {
    const schema = new Schema(entries);
    const { parameters, buffers } = decodeUpdate(unhex(update), schema);
    return { parameters: fromFloats(dense(parameters, schema.parameters)), buffers: fromFloats(buffers) };
  },
  feedback: ({ entries, change, residual, update }) => {
    const schema = new Schema(entries);
    return { residual: fromFloats(subtractSent(wanted(change, residual, schema), decodeUpdate(unhex(update), schema).parameters)) };
  },
  restore: ({ entries, update, residual }) => {
    const { parameters } = decodeUpdate(unhex(update), new Schema(entries));
    return { residual: fromFloats(addTo(floats(residual), parameters)) };
  },
  encode: ({ entries, codec, density, change, residual }) => {
    const schema = new Schema(entries);
    const p = wanted(change, residual, schema);
    const bufferChange = floats(change).slice(schema.parameters + schema.frozen);
    const { blob, sent } = encodeUpdate(p, bufferChange, { codec, density });
    return { update: hex(blob), residual: fromFloats(subtractSent(p, sent)) };
  },
};

/** What the vectors expect of `given`; null for a question that this program does not know. Throws a ProtocolError. */
export async function answer(ask, given) {
  if (ask.startsWith("device.")) return answerDevice(ask, given ?? {});
  if (!(ask in ANSWERS)) return null;
  check(given !== null && typeof given === "object", "malformed", "given");
  return ANSWERS[ask](given);
}
