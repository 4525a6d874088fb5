import assert from "node:assert/strict";
import { test } from "node:test";

import { Mlp, mlpTensors } from "../src/mlp.js";
import { randomNumbers, train } from "../src/sgd.js";

const sizes = [3, 5, 4, 2];
const count = mlpTensors(sizes).reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
const random = randomNumbers(7);
const uniform = (n) => Float32Array.from({ length: n }, () => 2 * random() - 1);
const lossOf = (model, xs, ys) => model.evaluate(xs, ys).loss;

/** Two rings of points: which one a point is on is no linear matter. */
function rings(n) {
  const xs = [];
  const ys = [];
  for (let i = 0; i < n; i += 1) {
    const angle = 2 * Math.PI * random();
    const radius = i % 2 === 0 ? 0.4 : 1;
    xs.push(Float32Array.of(radius * Math.cos(angle), radius * Math.sin(angle)));
    ys.push(i % 2);
  }
  return { xs, ys };
}

const settings = { batchSize: 16, lr: 0.1, momentum: 0.9, pause: async () => {}, clock: () => 0 };

test("the gradient is the loss's slope in every direction", () => {
  const model = new Mlp(sizes, uniform(count));
  const xs = Array.from({ length: 6 }, () => uniform(3));
  const ys = [0, 1, 1, 0, 1, 0];
  xs.forEach((x, i) => model.backward(x, ys[i], 1 / xs.length));
  const gradient = model.gradient.slice();
  const step = 1e-2;
  gradient.forEach((slope, i) => {
    const before = model.parameters[i];
    model.parameters[i] = before + step;
    const above = lossOf(model, xs, ys);
    model.parameters[i] = before - step;
    const below = lossOf(model, xs, ys);
    model.parameters[i] = before;
    assert.ok(Math.abs((above - below) / (2 * step) - slope) < 2e-3 + 0.02 * Math.abs(slope), `parameter ${i}`);
  });
});

test("cross-entropy of equal scores is the logarithm of the number of classes", () => {
  const model = new Mlp([2, 3], new Float32Array(9));
  assert.ok(Math.abs(model.backward([1, 2], 1, 1) - Math.log(3)) < 1e-6);
});

test("one step without momentum is minus lr times the mean gradient", async () => {
  const start = uniform(count);
  const reference = new Mlp(sizes, start.slice());
  const xs = Array.from({ length: 4 }, () => uniform(3));
  const ys = [0, 1, 0, 1];
  xs.forEach((x, i) => reference.backward(x, ys[i], 1 / 4));
  const model = new Mlp(sizes, start.slice());
  await train(model, { xs, ys }, { ...settings, epochs: 1, batchSize: 4, momentum: 0, random });
  model.parameters.forEach((value, i) => assert.ok(Math.abs(value - (start[i] - 0.1 * reference.gradient[i])) < 1e-6));
});

test("a strong proximal term keeps the weights where they were", async () => {
  const start = uniform(2 * 8 + 8 + 8 * 2 + 2);
  const away = async (proximalMu) => {
    const model = new Mlp([2, 8, 2], start.slice());
    await train(model, rings(200), { ...settings, epochs: 5, momentum: 0, proximalMu, random });
    return Math.hypot(...model.parameters.map((value, i) => value - start[i]));
  };
  assert.ok((await away(5)) < 0.5 * (await away(0)));
});

test("training tells two rings apart", async () => {
  const model = new Mlp([2, 16, 2], uniform(2 * 16 + 16 + 16 * 2 + 2));
  await train(model, rings(300), { ...settings, epochs: 30, random });
  const { xs, ys } = rings(200);
  assert.ok(model.evaluate(xs, ys).accuracy > 0.97);
});
