// The page: joins as the form says (or as the address does: ?join&broker=ws://...&id=phone-1) and shows what happens.

import { Agent } from "./src/agent.js";
import { Link } from "./src/link.js";
import { IndexedDbStorage } from "./src/storage/indexeddb.js";
import { MlpTask } from "./src/task.js";

const TICK_MS = 250;
const LOG_LINES = 12;
const CHART = { left: 40, right: 630, top: 10, bottom: 195 };

const form = document.querySelector("form");
const alertLine = document.querySelector("[role=alert]");
const show = (id, text) => { document.getElementById(id).textContent = text; };

function fillForm() {
  const query = new URLSearchParams(location.search);
  form.broker.value = `ws://${location.hostname || "127.0.0.1"}:9001`;
  form.id.value = localStorage.getItem("fedmq-id") ?? `web-${Math.random().toString(36).slice(2, 8)}`;
  for (const name of ["broker", "federation", "id", "data"]) if (query.has(name)) form[name].value = query.get(name);
  return query.has("join");
}

/** Give the event loop its turn; timers would be slowed down while the page is hidden. */
function pause() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Two pages with one name would use the same counters: the second one is told. */
async function holdName(name) {
  if (navigator.locks === undefined) return; // over plain HTTP there are none
  await new Promise((resolve, reject) => {
    navigator.locks.request(`fedmq-${name}`, { ifAvailable: true }, (lock) => {
      if (lock === null) {
        reject(new Error(`another page is ${name} already`));
        return undefined;
      }
      resolve();
      return new Promise(() => {}); // held as long as the page lives
    });
  });
}

const chart = {
  points: [],

  add(version, accuracy) {
    if (this.points.length > 0 && version <= this.points.at(-1)[0]) this.points = [];
    this.points.push([version, accuracy]);
    this.draw();
  },

  draw() {
    const last = Math.max(10, this.points.at(-1)[0]);
    const x = (version) => CHART.left + ((CHART.right - CHART.left) * version) / last;
    const y = (accuracy) => CHART.bottom - (CHART.bottom - CHART.top) * accuracy;
    const lines = [0, 0.25, 0.5, 0.75, 1].map((at) =>
      `<line x1="${CHART.left}" x2="${CHART.right}" y1="${y(at)}" y2="${y(at)}" stroke="var(--line)"/>` +
      `<text x="4" y="${y(at) + 4}">${100 * at} %</text>`);
    lines.push(`<text x="${CHART.left}" y="214">version 0</text>`, `<text x="${CHART.right}" y="214" text-anchor="end">${last}</text>`);
    document.getElementById("grid").innerHTML = lines.join("");
    document.getElementById("curve").setAttribute("points", this.points.map(([v, a]) => `${x(v)},${y(a)}`).join(" "));
    document.getElementById("dots").innerHTML = this.points
      .map(([v, a]) => `<circle cx="${x(v)}" cy="${y(a)}" r="3" fill="var(--green)"/>`).join("");
  },
};

function writeLine(word, details) {
  const line = document.createElement("li");
  const time = new Date().toTimeString().slice(0, 8);
  const bold = document.createElement("b");
  bold.textContent = word;
  const told = Object.entries(details).filter(([, value]) => value !== "" && value !== undefined);
  const short = (value) => (Number.isInteger(value) || typeof value !== "number" ? value : value.toPrecision(3));
  line.append(`${time} `, bold, ` ${told.map(([key, value]) => `${key} ${short(value)}`).join(", ")}`);
  const log = document.getElementById("log");
  log.prepend(line);
  while (log.children.length > LOG_LINES) log.lastChild.remove();
}

const bytes = (count) => (count < 10000 ? `${count}\u00a0B` : `${Math.round(count / 1000)}\u00a0kB`);

async function join({ broker, federation, id, data }) {
  await holdName(`${federation}-${id}`);
  localStorage.setItem("fedmq-id", id);
  const answer = await fetch(data);
  if (!answer.ok) throw new Error(`${data}: ${answer.status}`);
  const clock = () => performance.now();
  const task = new MlpTask(await answer.json(), { pause, clock, seed: crypto.getRandomValues(new Uint32Array(1))[0] });
  let agent = null;

  function heard(word, details) {
    if (word === "connected") show("state", "connected");
    if (word === "connection lost" || word === "no connection") show("state", "no connection");
    if (word === "announced") show("run", `${details.run}, round ${details.round}`);
    if (word === "run over") show("run", `${details.run}: ${details.state}`);
    if (word === "version") {
      show("version", details.version);
      const measured = task.evaluate(agent.replica);
      if (measured !== null) {
        show("accuracy", `${(100 * measured.metrics.accuracy).toFixed(1)} %`);
        chart.add(details.version, measured.metrics.accuracy);
      }
    }
    if (word === "failed") console.error(details.error);
    writeLine(word, details);
  }

  agent = await Agent.open({
    federation,
    device: id,
    task,
    storage: await IndexedDbStorage.open(`fedmq-${federation}-${id}`),
    connect: (will, events) => Link.open(broker, { will, clientId: `fedmq-${federation}-${id}` }, events),
    now: () => performance.now() / 1000,
    wallClock: () => Date.now() / 1000,
    log: heard,
  });
  show("state", "connecting");
  setInterval(() => {
    agent.tick(performance.now() / 1000);
    show("accepted", agent.counts.accepted);
    show("traffic", agent.traffic().map(bytes).join(" / "));
  }, TICK_MS);
}

async function joinByForm() {
  const button = form.querySelector("button");
  button.disabled = true;
  alertLine.textContent = "";
  try {
    await join(Object.fromEntries(new FormData(form)));
    form.hidden = true;
  } catch (error) {
    button.disabled = false;
    alertLine.textContent = error.message;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  joinByForm();
});
if (fillForm()) joinByForm();
