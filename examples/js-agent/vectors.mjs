// node vectors.mjs            all of ../../protocol/vectors, checked here
// node vectors.mjs FOLDER     those of another folder
// node vectors.mjs --answer   questions from standard input, a line each: for protocol/vectors/run.py

import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { isDeepStrictEqual, parseArgs } from "node:util";
import { fileURLToPath } from "node:url";

import { floatsFromBytes } from "./src/float32.js";
import { unhex } from "./src/bytes.js";
import { dense, decode } from "./src/codecs/decode.js";
import { encode } from "./src/codecs/encode.js";
import { ProtocolError } from "./src/errors.js";
import { answer } from "./vectors/answers.js";

const HERE = dirname(fileURLToPath(import.meta.url));

/** `{ gives }`, `{ error }` or `{ unsupported }`. */
function reply(ask, given) {
  try {
    const gives = answer(ask, given);
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
    console.log(JSON.stringify({ id, ...reply(ask, given) }));
  }
}

/** sent + residual = wanted, exactly, and no more elements than asked for. */
function isFairUpdate({ entries, change, residual }, atMost, gives) {
  if (gives === undefined) return false;
  const sent = reply("update", { entries, update: gives.update }).gives;
  const q = floatsFromBytes(unhex(sent.parameters));
  const e = floatsFromBytes(unhex(gives.residual));
  const [delta, old] = [floatsFromBytes(unhex(change)), floatsFromBytes(unhex(residual))];
  const count = q.reduce((sum, value) => sum + (value !== 0), 0);
  return count <= atMost && q.every((value, i) => value + e[i] === Math.fround(delta[i] + old[i]));
}

function isRight(question) {
  const { ask, given, gives, error } = question;
  const got = reply(ask, given);
  if (got.unsupported) return null;
  if (error !== undefined) return got.error === error;
  if (ask === "encode") return isFairUpdate(given, gives.at_most, got.gives);
  return Object.entries(gives).every(([key, value]) => value === null || isDeepStrictEqual(got.gives?.[key], value));
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
    const verdicts = questions.map(isRight);
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
