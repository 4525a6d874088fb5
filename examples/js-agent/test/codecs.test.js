import assert from "node:assert/strict";
import { test } from "node:test";

import { concat, unhex } from "../src/bytes.js";
import { decode, dense } from "../src/codecs/decode.js";
import { CODECS, countKept, encode, selectLargest } from "../src/codecs/encode.js";
import { decodeGrid } from "../src/codecs/grid.js";
import { philox } from "../src/codecs/philox.js";
import { decodeIndices, encodeIndices, longest } from "../src/codecs/rice.js";
import { unpack } from "../src/codecs/zstd.js";
import { ProtocolError } from "../src/errors.js";
import { makeUpdate, subtractSent } from "../src/feedback.js";
import { randomNumbers } from "../src/sgd.js";

const random = randomNumbers(11);

/** Values over many orders of magnitude, some zero, some far larger than the rest. */
function wild(n) {
  return Float32Array.from({ length: n }, () => {
    if (random() < 0.1) return 0;
    return (random() < 0.5 ? -1 : 1) * 2 ** (24 * (random() - 0.8)) * (1 + random());
  });
}

const densities = [0.001, 0.01, 0.1, 0.3, 1];

test("sent + residual is what was wanted, to the bit, for every codec", () => {
  for (const codec of CODECS) {
    for (const n of [0, 1, 7, 64, 65, 130, 1000]) {
      for (const density of densities) {
        const wanted = wild(n);
        const sent = decode(encode(wanted, codec, density), n);
        const residual = subtractSent(wanted.slice(), sent);
        const q = dense(sent, n);
        wanted.forEach((value, i) => assert.equal(q[i] + residual[i], value, `${codec}, n ${n}, density ${density}`));
        if (sent.indices !== null && n > 64) assert.ok(sent.indices.length <= countKept(density, n));
      }
    }
  }
});

test("indices come back, and are never longer than the bound", () => {
  for (const n of [1, 100, 5000, 300000]) {
    for (const share of [0.0005, 0.01, 0.2, 1]) {
      const indices = [];
      for (let i = 0; i < n; i += 1) if (random() < share) indices.push(i);
      const bytes = encodeIndices(indices, n);
      assert.ok(bytes.length <= longest(n, indices.length));
      assert.deepEqual([...decodeIndices(bytes, indices.length, n)], indices);
    }
  }
});

test("arbitrary bytes raise the protocol's own error or decode to finite values", () => {
  const bases = CODECS.map((codec) => encode(wild(200), codec, 0.1));
  let refused = 0;
  for (let i = 0; i < 5000; i += 1) {
    const bytes = bases[i % bases.length].slice();
    for (let flips = 1 + Math.floor(4 * random()); flips > 0; flips -= 1) {
      bytes[Math.floor(bytes.length * random())] = Math.floor(256 * random());
    }
    const payload = random() < 0.3 ? bytes.slice(0, Math.floor(bytes.length * random())) : bytes;
    try {
      const { values } = decode(payload, 200);
      assert.ok(values.every(Number.isFinite));
    } catch (error) {
      assert.ok(error instanceof ProtocolError, error.stack);
      refused += 1;
    }
  }
  assert.ok(refused > 250);
});

test("arbitrary bytes are no grid, or strictly increasing indices", () => {
  const shapes = [[12, 20], [7], [], [0, 3], [40, 5]];
  const n = 448;
  for (let i = 0; i < 5000; i += 1) {
    const k = 1 + Math.floor(6 * random());
    const section = Uint8Array.from({ length: 1 + Math.floor(9 * random()) }, () => Math.floor(256 * random()));
    try {
      const indices = decodeGrid(section, k, shapes);
      assert.equal(indices.length, k);
      indices.forEach((index, j) => assert.ok(index < n && (j === 0 || index > indices[j - 1])));
    } catch (error) {
      assert.ok(error instanceof ProtocolError, error.stack);
    }
  }
});

test("a budget of bytes is kept, and nearly used", () => {
  const change = wild(5000);
  for (const codec of ["topk-log4", "topk-sign", "topk-int8"]) {
    for (const bytes of [100, 700, 3000]) {
      const upload = { codec, density: 0.5, first_density: 0.5, anneal_updates: 0, residual_cap: 10, update_bytes: bytes };
      const { blob } = makeUpdate(change, new Float32Array(5000), upload, 0);
      assert.ok(blob.length <= bytes, `${blob.length} of ${bytes}, ${codec}`);
      // A budget beyond what is worth sending is not used up.
      if (codec === "topk-int8" && bytes < 3000) assert.ok(blob.length > 0.8 * bytes, `${blob.length} of ${bytes}`);
    }
  }
});

test("how many are kept is exact in decimal", () => {
  assert.equal(countKept(0.1, 30), 3); // 0.1 * 30 is more than 3 in binary
  assert.equal(countKept(0.07, 100), 7);
  assert.equal(countKept(1e-7, 100), 1);
  assert.equal(countKept(0.011, 1000), 11);
  assert.equal(countKept(1, 5), 5);
});

test("of equal magnitudes the lowest indices are kept", () => {
  assert.deepEqual([...selectLargest(Float32Array.of(1, -2, 2, 1, -1), 3)], [0, 1, 2]);
});

test("Philox gives its authors' known answers", () => {
  const words = (counter, key) => [...philox(counter, key, new Uint32Array(4))].map((word) => word.toString(16));
  assert.deepEqual(words([0, 0, 0, 0], [0, 0]), ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]);
  const ones = 0xffffffff;
  assert.deepEqual(words([ones, ones, ones, ones], [ones, ones]), ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]);
  const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
  assert.deepEqual(words(pi, [0xa4093822, 0x299f31d0]), ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]);
});

test("a zstd frame is unpacked only if it is exactly what was expected", () => {
  const frame = unhex("28b52ffd204a450000100000010085022c"); // 74 zeros
  assert.deepEqual(unpack(frame, 74), new Uint8Array(74));
  const more = frame.slice();
  more[5] = 75; // states another size than it has
  const cases = [[frame, 73], [frame, 75], [more, 75], [concat(frame, frame), 74], [frame.slice(0, -1), 74]];
  for (const [bytes, size] of cases) assert.throws(() => unpack(bytes, size), ProtocolError);
});
