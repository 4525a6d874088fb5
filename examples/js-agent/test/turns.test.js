import assert from "node:assert/strict";
import { test } from "node:test";

import { Delivery } from "../src/delivery.js";

function deliveryOf(...counters) {
  const sent = [];
  const delivery = new Delivery({ say() {}, packetLimit: () => 131072, traffic: () => [0, 0] });
  delivery.send = ({ entry }) => sent.push(entry);
  for (const counter of counters) delivery.add(counter, counter, 0);
  return { delivery, sent };
}

test("in its turn it sends one update at a time, and one that nobody answers holds up no other", () => {
  const { delivery, sent } = deliveryOf(3, 4);
  for (let now = 0; now < 20; now += 0.5) {
    delivery.takeTurn("mine", now);
    delivery.tick(now);
    if (now < 4) assert.deepEqual(sent, [3]);
  }
  assert.deepEqual(sent.slice(0, 3), [3, 4, 3]);
});

test("out of turn it begins nothing for a minute", () => {
  const { delivery, sent } = deliveryOf(3);
  delivery.takeTurn("waits", 0);
  delivery.tick(59);
  assert.deepEqual(sent, []);
  delivery.tick(60);
  assert.deepEqual(sent, [3]);
});
