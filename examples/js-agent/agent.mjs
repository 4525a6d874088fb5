// node agent.mjs --broker mqtt://127.0.0.1:1883 --federation home --id js-1 --data digits-0.json [--state DIR]

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { Agent } from "./src/agent.js";
import { Link } from "./src/link.js";
import { FileStorage } from "./src/storage/files.js";
import { MlpTask } from "./src/task.js";

const TICK_MS = 100;

const { values: options } = parseArgs({
  options: {
    broker: { type: "string", default: "mqtt://127.0.0.1:1883" },
    federation: { type: "string" },
    id: { type: "string" },
    data: { type: "string" },
    state: { type: "string" },
    "coordinator-key": { type: "string" },
    username: { type: "string" },
    password: { type: "string" },
  },
});
for (const name of ["federation", "id", "data"]) {
  if (options[name] === undefined) {
    console.error(`--${name} is needed`);
    process.exit(2);
  }
}

/** Say in a line what keeps the agent from starting. */
function refuse(text) {
  console.error(text);
  process.exit(2);
}

const read = (path) => readFile(path, "utf8").catch((error) => refuse(`${path} cannot be read: ${error.message}`));

/** The coordinator's public key: 64 hex digits, or a file that holds them, as every agent's `coordinator.pub` does. */
async function publicKey(given) {
  const text = /^[0-9a-f]{64}$/i.test(given) ? given : (await read(given)).trim();
  return /^[0-9a-f]{64}$/i.test(text) ? Uint8Array.from(Buffer.from(text, "hex")) : refuse("--coordinator-key: 64 hex digits, or a file with them");
}

const steady = () => performance.now() / 1000;
const task = new MlpTask(JSON.parse(await read(options.data)), {
  pause: () => new Promise((resolve) => { setImmediate(resolve); }),
  clock: () => performance.now(),
  seed: crypto.getRandomValues(new Uint32Array(1))[0],
});
const keyFile = options["coordinator-key"];

/** One line for each thing that happens: a time, a word, and what belongs to it. */
function log(word, details) {
  const { error, ...rest } = details;
  console.log(new Date().toISOString().slice(11, 23), options.id, word, JSON.stringify(rest), error?.stack ?? error ?? "");
}

const agent = await Agent.open({
  federation: options.federation,
  device: options.id,
  task,
  storage: await FileStorage.open(options.state ?? join("state", options.id)),
  connect: (will, events) => {
    const { username, password } = options;
    return Link.open(options.broker, { will, username, password, clientId: `fedmq-${options.federation}-${options.id}` }, events);
  },
  coordinatorKey: keyFile === undefined ? null : await publicKey(keyFile),
  now: steady,
  wallClock: () => Date.now() / 1000,
  log,
});

const timer = setInterval(() => agent.tick(steady()), TICK_MS);
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, async () => {
    clearInterval(timer);
    await agent.stop();
    log("stopped", agent.counts);
    process.exit(0);
  });
}
agent.tick(steady());
