// A multi-layer perceptron with ReLU between its layers, on one flat Float32Array of parameters.

/**
 * The tensors of `nn.Sequential(Linear, ReLU, Linear, ...)` as PyTorch names them: [name, shape], weights as [out, in].
 */
export function mlpTensors(sizes) {
  return sizes.slice(1).flatMap((outputs, i) => [
    [`${2 * i}.weight`, [outputs, sizes[i]]],
    [`${2 * i}.bias`, [outputs]],
  ]);
}

export class Mlp {
  /** `sizes`: inputs, hidden layers, classes. `parameters`: Float32Array, layer by layer weight then bias. */
  constructor(sizes, parameters) {
    this.sizes = sizes;
    this.parameters = parameters;
    this.gradient = new Float32Array(parameters.length);
    this.layers = [];
    let at = 0;
    for (let i = 1; i < sizes.length; i += 1) {
      const [inputs, outputs] = [sizes[i - 1], sizes[i]];
      this.layers.push({ inputs, outputs, weight: at, bias: at + inputs * outputs });
      at += inputs * outputs + outputs;
    }
    if (at !== parameters.length) throw new RangeError(`${at} parameters are needed, not ${parameters.length}`);
    this.outputs = sizes.map((size) => new Float32Array(size)); // of each layer, for one example
    this.errors = sizes.map((size) => new Float32Array(size)); // the loss by each of them
  }

  /** The scores of one example; `x` has sizes[0] numbers. */
  forward(x) {
    const { parameters } = this; // in a variable of its own: the loops below are nearly all of the time
    this.outputs[0].set(x);
    this.layers.forEach(({ inputs, outputs, weight, bias }, i) => {
      const [from, to] = [this.outputs[i], this.outputs[i + 1]];
      const last = i === this.layers.length - 1;
      for (let o = 0; o < outputs; o += 1) {
        let sum = parameters[bias + o];
        const row = weight + o * inputs;
        for (let k = 0; k < inputs; k += 1) sum += parameters[row + k] * from[k];
        to[o] = last || sum > 0 ? sum : 0;
      }
    });
    return this.outputs[this.outputs.length - 1];
  }

  /** Cross-entropy of one example; adds `weight` times its gradient to `gradient`. */
  backward(x, label, weight) {
    const scores = this.forward(x);
    const top = Math.max(...scores);
    let sum = 0;
    for (const score of scores) sum += Math.exp(score - top);
    const error = this.errors[this.errors.length - 1];
    for (let o = 0; o < scores.length; o += 1) error[o] = weight * (Math.exp(scores[o] - top) / sum - (o === label));
    for (let i = this.layers.length - 1; i >= 0; i -= 1) this.backwardLayer(i);
    return Math.log(sum) + top - scores[label];
  }

  backwardLayer(i) {
    const { parameters, gradient } = this;
    const { inputs, outputs, weight, bias } = this.layers[i];
    const [from, error, below] = [this.outputs[i], this.errors[i + 1], this.errors[i]];
    below.fill(0);
    for (let o = 0; o < outputs; o += 1) {
      if (error[o] === 0) continue;
      const row = weight + o * inputs;
      const slope = error[o];
      gradient[bias + o] += slope;
      for (let k = 0; k < inputs; k += 1) gradient[row + k] += slope * from[k];
      if (i > 0) for (let k = 0; k < inputs; k += 1) below[k] += slope * parameters[row + k];
    }
    if (i > 0) for (let k = 0; k < inputs; k += 1) if (from[k] === 0) below[k] = 0; // ReLU
  }

  /** `{ loss, accuracy }` over all examples. */
  evaluate(xs, ys) {
    let loss = 0;
    let right = 0;
    xs.forEach((x, i) => {
      const scores = this.forward(x);
      const top = Math.max(...scores);
      loss += Math.log(scores.reduce((sum, score) => sum + Math.exp(score - top), 0)) + top - scores[ys[i]];
      if (scores.indexOf(top) === ys[i]) right += 1;
    });
    return { loss: loss / xs.length, accuracy: right / xs.length };
  }
}
