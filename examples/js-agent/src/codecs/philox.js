// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), in 32-bit integers.

/** The upper 32 bits of a 64-bit product. */
function high(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const other = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (other >>> 16)) >>> 0;
}

/** Four words out of a counter of four words and a key of two; into `out`. */
export function philox(counter, key, out) {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round += 1) {
    const [yHigh, yLow] = [high(0xcd9e8d57, c2), Math.imul(0xcd9e8d57, c2) >>> 0];
    const [xHigh, xLow] = [high(0xd2511f53, c0), Math.imul(0xd2511f53, c0) >>> 0];
    [c0, c1, c2, c3] = [(yHigh ^ c1 ^ k0) >>> 0, yLow, (xHigh ^ c3 ^ k1) >>> 0, xLow];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
  return out;
}

/** Call `use(bytes, i)` with the 16 bytes of block i = 0 ... blocks - 1 of a stream; `seed` is two words, low first. */
export function eachBlock({ seed, purpose, part, blocks }, use) {
  const words = new Uint32Array(4);
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < blocks; i += 1) {
    philox([i, part, purpose, 0], seed, words);
    for (let w = 0; w < 4; w += 1) view.setUint32(4 * w, words[w], true);
    use(bytes, i);
  }
}
