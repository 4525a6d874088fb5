// Stochastic gradient descent, in slices: the event loop gets its turn, so that a page and a connection stay alive.

const SLICE_MS = 25;

/** A generator of numbers in [0, 1): mulberry32, for shuffling only. */
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(count, random) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/**
 * Train `model` in place on `{ xs, ys }`; returns the mean loss of the last epoch.
 *
 * Momentum: v = momentum v + gradient, then p -= lr v; `proximalMu` adds mu (p - p at the beginning) to the gradient.
 * `pause` is awaited every 25 ms of `clock`.
 */
export async function train(model, { xs, ys }, settings) {
  const { epochs, batchSize, lr, momentum = 0, proximalMu = 0, random, pause, clock } = settings;
  const { parameters, gradient } = model;
  const start = parameters.slice();
  const velocity = new Float32Array(parameters.length);
  let loss = 0;
  let sliceEnd = clock() + SLICE_MS;
  for (let epoch = 0; epoch < epochs; epoch += 1) {
    const order = shuffled(xs.length, random);
    loss = 0;
    for (let at = 0; at < order.length; at += batchSize) {
      const batch = order.subarray(at, at + batchSize);
      gradient.fill(0);
      for (const i of batch) loss += model.backward(xs[i], ys[i], 1 / batch.length);
      for (let k = 0; k < parameters.length; k += 1) {
        velocity[k] = momentum * velocity[k] + gradient[k] + proximalMu * (parameters[k] - start[k]);
        parameters[k] -= lr * velocity[k];
      }
      if (clock() < sliceEnd) continue;
      await pause();
      sliceEnd = clock() + SLICE_MS;
    }
  }
  return loss / xs.length;
}
