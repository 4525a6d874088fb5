// The tensor schema: what a model's flat vector is made of, and the hash by which both sides agree on it.

import { hex } from "./bytes.js";
import { sha256 } from "./keys.js";
import { pack } from "./msgpack.js";

const sizeOf = (shape) => shape.reduce((product, size) => product * size, 1);

/** `entries`: [{ name, shape, dtype, role, tied_to }] in the state_dict's order. */
export class Schema {
  constructor(entries) {
    this.entries = entries;
    const count = (role) =>
      entries.filter((entry) => entry.role === role).reduce((sum, entry) => sum + sizeOf(entry.shape), 0);
    this.parameters = count("parameter");
    this.frozen = count("frozen");
    this.buffers = count("buffer");
    this.parameterShapes = entries.filter(({ role }) => role === "parameter").map(({ shape }) => shape);
    const listed = entries.map(({ name, shape, dtype, role, tied_to: tiedTo }) => [name, shape, dtype, role, tiedTo]);
    this.hash = hex(sha256(pack(listed)));
  }
}
