/**
 * Named byte strings that outlive a connection. Each storage has these three: `read`, `names`, and `commit`,
 * which makes several changes or none, whenever the power goes.
 */
export class MemoryStorage {
  constructor() {
    this.items = new Map();
  }

  async read(name) {
    return this.items.get(name)?.slice() ?? null;
  }

  async names() {
    return [...this.items.keys()];
  }

  /** `changes`: name -> Uint8Array, or null to remove it. */
  async commit(changes) {
    for (const [name, bytes] of Object.entries(changes)) {
      if (bytes === null) this.items.delete(name);
      else this.items.set(name, bytes.slice());
    }
  }
}
