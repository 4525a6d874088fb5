/** Waits that double from the first to the longest, spread by a fifth either way. Seconds. */
export class Backoff {
  constructor(first, longest, random = Math.random) {
    this.first = first;
    this.longest = longest;
    this.random = random;
    this.reset();
  }

  reset() {
    this.wait = this.first;
  }

  /** The next wait; at once the longest if `seldom`. */
  next(seldom = false) {
    const wait = seldom ? this.longest : this.wait;
    this.wait = Math.min(this.longest, 2 * this.wait);
    return wait * (0.8 + 0.4 * this.random());
  }
}
