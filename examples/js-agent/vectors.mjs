// node vectors.mjs            all of ../../protocol/vectors, checked here
// node vectors.mjs FOLDER     those of another folder
// node vectors.mjs --answer   questions from standard input, a line each: for protocol/vectors/run.py

import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";

import { floatsFromBytes } from "./src/float32.js";
import { unhex } from "./src/bytes.js";
import { dense, decode } from "./src/codecs/decode.js";
import { encode } from "./src/codecs/encode.js";
import { ProtocolError } from "./src/errors.js";
import { answer } from "./vectors/answers.js";

/** Of several faults of a payload a decoder may name any. */
const PAYLOAD_FAULTS = new Set(["malformed", "too-large", "wrong-size"]);
const HERE = dirname(fileURLToPath(import.meta.url));

/** `{ gives }`, `{ error }` or `{ unsupported }`. */
async function reply(ask, given) {
  try {
    const gives = await answer(ask, given);
    return gives === null ? { unsupported: true } : { gives };
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return { error: error.reason };
  }
}

async function answerLines() {
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim() === "") continue;
    const { id, ask, given } = JSON.parse(line);
    console.log(JSON.stringify({ id, ...(await reply(ask, given)) }));
  }
}

/** sent + residual = wanted, exactly, and no more elements than asked for. */
async function isFairUpdate({ entries, change, residual }, atMost, gives) {
  if (gives === undefined) return false;
  const { gives: sent } = await reply("update", { entries, update: gives.update });
  const q = floatsFromBytes(unhex(sent.parameters));
  const e = floatsFromBytes(unhex(gives.residual));
  const [delta, old] = [floatsFromBytes(unhex(change)), floatsFromBytes(unhex(residual))];
  const count = q.reduce((sum, value) => sum + (value !== 0), 0);
  return count <= atMost && q.every((value, i) => value + e[i] === Math.fround(delta[i] + old[i]));
}

/** Whether `got` has all that `expected` has; it may have more. */
function covers(got, expected) {
  if (expected === null || typeof expected !== "object") return got === expected || (expected === null && got === undefined);
  if (got === null || typeof got !== "object") return false;
  if (Array.isArray(expected)) {
    return Array.isArray(got) && got.length === expected.length && expected.every((item, i) => covers(got[i], item));
  }
  return Object.entries(expected).every(([key, item]) => covers(got[key], item));
}

/** What a device says, without what it may say at any time where that is not expected. */
function sayings(said, expected, maySay) {
  const out = [];
  for (const item of said) {
    const isExpected = expected[out.length]?.kind === item.kind;
    if (isExpected || !["presence", "hello", ...maySay].includes(item.kind)) out.push(item);
  }
  return out;
}

/** Play the broker: the device hears each chunk that it has subscribed to, until it wants no more of them. */
async function serve({ retained }) {
  const says = [];
  let trains = null;
  for (let topics = [...subscribed]; topics.length > 0; topics = [...subscribed]) {
    for (const topic of topics) {
      subscribed.delete(topic);
      if (retained[topic] === undefined) continue;
      const { gives } = await ask("device.hear", { topic, packet: retained[topic], retained: true });
      says.push(...gives.says);
      trains = gives.trains ?? trains;
    }
  }
  return { gives: { says, trains } };
}

const subscribed = new Set(); // what the device has subscribed to and not had yet

async function ask(question, given) {
  if (question === "device.serve") return serve(given);
  if (question === "device.begin") subscribed.clear();
  const got = await reply(question, given);
  for (const topic of got.gives?.subscribes ?? []) subscribed.add(topic);
  return got;
}

async function isRight({ ask: question, given, gives, error }) {
  const got = await ask(question, given);
  if (got.unsupported) return null;
  if (error !== undefined) return got.error === error || (PAYLOAD_FAULTS.has(error) && PAYLOAD_FAULTS.has(got.error));
  if (question === "encode") return isFairUpdate(given, gives.at_most, got.gives);
  const { may_say: maySay = [], subscribes = [], ...wanted } = gives;
  if (!subscribes.every((topic) => got.gives.subscribes.includes(topic))) return false;
  if (wanted.says !== undefined) {
    for (const item of wanted.says) if (item.kind === "update") item.body = withoutPayload(item.body);
    if (got.gives !== undefined) got.gives.says = sayings(got.gives.says, wanted.says, maySay);
  }
  return covers(got.gives, wanted);
}

/** An update's payload is the encoder's own. */
function withoutPayload({ header: { payload, ...header }, data, ...body }) {
  return { header, ...body };
}

/** The two lists of codecs.json as questions; and what this program encodes decodes to what it says it sent. */
function* codecQuestions({ valid, invalid }) {
  for (const { name, n, payload, values, indices, shapes } of valid) {
    const sent = { indices: indices === undefined ? null : Uint32Array.from(indices), values: floatsFromBytes(unhex(values)) };
    const bytes = new Uint8Array(dense(sent, n).buffer);
    yield { name, ask: "decode", given: { n, payload, shapes }, gives: { values: Buffer.from(bytes).toString("hex") } };
  }
  for (const { name, n, payload, reason } of invalid) yield { name, ask: "decode", given: { n, payload }, error: reason };
}

/** Every element of every valid vector: sent + residual is it, to the bit, with this program's own encoder. */
function encodersAreExact({ valid }) {
  return valid.every(({ vector, codec, density, n }) => {
    const wanted = floatsFromBytes(unhex(vector));
    const sent = dense(decode(encode(wanted, codec, density), n), n);
    return wanted.every((value, i) => Math.fround(value - sent[i]) + sent[i] === value);
  });
}

async function checkAll(folder) {
  let wrong = 0;
  for (const file of (await readdir(folder)).filter((name) => name.endsWith(".json")).sort()) {
    const content = JSON.parse(await readFile(join(folder, file), "utf8"));
    const isCodecs = content.cases === undefined;
    const questions = isCodecs ? [...codecQuestions(content)] : content.cases;
    const verdicts = [];
    for (const question of questions) verdicts.push(await isRight(question)); // in this order
    questions.forEach(({ name }, i) => { if (verdicts[i] === false) console.log(`${file}: wrong: ${name}`); });
    if (isCodecs && !encodersAreExact(content)) {
      console.log(`${file}: an encoder loses something`);
      wrong += 1;
    }
    const [right, unsupported] = [verdicts.filter((it) => it === true).length, verdicts.filter((it) => it === null).length];
    wrong += verdicts.length - right - unsupported;
    console.log(`${file}: ${right} of ${verdicts.length} right${unsupported ? `, ${unsupported} unsupported` : ""}`);
  }
  return wrong;
}

const { values: options, positionals } = parseArgs({ options: { answer: { type: "boolean" } }, allowPositionals: true });
if (options.answer) await answerLines();
else process.exitCode = (await checkAll(positionals[0] ?? join(HERE, "../../protocol/vectors"))) === 0 ? 0 : 1;
