// What the agent trains: a perceptron and this device's examples, as `export.py` wrote them.

import { Mlp } from "./mlp.js";
import { Schema } from "./schema.js";
import { randomNumbers, train } from "./sgd.js";

/** Layer sizes of `nn.Sequential(Linear, ReLU, ..., Linear)`, by its tensors. */
function sizesOf(tensors) {
  const weights = tensors.filter(({ shape }) => shape.length === 2).map(({ shape }) => shape);
  return [weights[0][1], ...weights.map(([outputs]) => outputs)];
}

const inputsOf = ({ scale, x }) => x.map((row) => Float32Array.from(row, (value) => value * scale));

export class MlpTask {
  /**
   * `exported`: `{ name, version, tensors, train: { scale, x, y }, test }`. `pause()` gives the event loop its turn,
   * `clock()` are milliseconds, `seed` is for shuffling.
   */
  constructor(exported, { pause, clock, seed }) {
    this.schema = new Schema(exported.tensors);
    this.ref = { name: exported.name, version: exported.version, schema_hash: this.schema.hash };
    this.sizes = sizesOf(exported.tensors);
    this.examples = { xs: inputsOf(exported.train), ys: exported.train.y };
    this.test = exported.test === null ? null : { xs: inputsOf(exported.test), ys: exported.test.y };
    this.numExamples = this.examples.ys.length;
    Object.assign(this, { pause, clock, random: randomNumbers(seed) });
  }

  /** `{ weights, metrics }` after training from a replica's weights, which stay as they are. */
  async train({ weights }, settings) {
    const model = new Mlp(this.sizes, weights.slice());
    const loss = await train(model, this.examples, {
      epochs: settings.local_epochs,
      batchSize: settings.batch_size,
      lr: settings.lr,
      momentum: settings.momentum,
      proximalMu: settings.proximal_mu,
      random: this.random,
      pause: this.pause,
      clock: this.clock,
    });
    return { weights: model.parameters, metrics: { loss } };
  }

  /** An update's `evaluation` on this device's test data, or null without any. */
  evaluate({ weights }) {
    if (this.test === null) return null;
    const { loss, accuracy } = new Mlp(this.sizes, weights).evaluate(this.test.xs, this.test.ys);
    return { num_examples: this.test.ys.length, loss, metrics: { accuracy } };
  }
}
