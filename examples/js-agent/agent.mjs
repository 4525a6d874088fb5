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

const steady = () => performance.now() / 1000;
const task = new MlpTask(JSON.parse(await readFile(options.data, "utf8")), {
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
  coordinatorKey: keyFile === undefined ? null : new Uint8Array(await readFile(keyFile)),
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
