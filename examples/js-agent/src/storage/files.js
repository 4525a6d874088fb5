// A folder as storage, for Node. A commit is one journal file that is written, synced and renamed before anything
// else changes; a journal that is found at the start is carried out again.

import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

import { pack, unpack } from "../msgpack.js";

const JOURNAL = "journal";
const SUFFIX = ".bin";

async function writeDurably(path, bytes) {
  const file = await open(`${path}.tmp`, "w", 0o600);
  try {
    await file.writeFile(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.tmp`, path);
}

export class FileStorage {
  constructor(folder) {
    this.folder = folder;
    this.queue = Promise.resolve();
  }

  static async open(folder) {
    await mkdir(folder, { recursive: true });
    const storage = new FileStorage(folder);
    try {
      await storage.carryOut(unpack(await readFile(join(folder, JOURNAL))));
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
    return storage;
  }

  path(name) {
    return join(this.folder, name + SUFFIX);
  }

  async read(name) {
    try {
      return new Uint8Array(await readFile(this.path(name)));
    } catch (error) {
      if (error.code === "ENOENT") return null;
      throw error;
    }
  }

  async names() {
    const files = await readdir(this.folder);
    return files.filter((file) => file.endsWith(SUFFIX)).map((file) => file.slice(0, -SUFFIX.length));
  }

  async sync() {
    const folder = await open(this.folder);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }

  async carryOut(changes) {
    for (const [name, bytes] of Object.entries(changes)) {
      if (bytes === null) await rm(this.path(name), { force: true });
      else await writeDurably(this.path(name), bytes);
    }
    await this.sync();
    await rm(join(this.folder, JOURNAL), { force: true });
  }

  /** One commit after the other. */
  commit(changes) {
    const done = this.queue.then(async () => {
      await writeDurably(join(this.folder, JOURNAL), pack(changes));
      await this.sync();
      await this.carryOut(changes);
    });
    this.queue = done.catch(() => {});
    return done;
  }
}
