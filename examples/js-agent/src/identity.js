// Who a device is: its key, and the number of its connection.

import { keyIdOf, newSecret, publicKeyOf } from "./keys.js";
import { pack, unpack } from "./msgpack.js";
import { seal } from "./envelope.js";
import { BODIES } from "./messages.js";

const RECORD = "identity";

export class Identity {
  constructor(storage, device, { secret, session }) {
    this.storage = storage;
    this.device = device;
    this.secret = secret;
    this.session = session;
    this.publicKey = publicKeyOf(secret);
    this.key = { secret, id: keyIdOf(this.publicKey) };
    this.sequence = 0;
    this.overtakenBy = 0; // a session that the next one is to be above
  }

  /** Sessions begin at `now`, in seconds since 1970: should the storage be lost, they grow all the same. */
  static async load(storage, device, now) {
    const bytes = await storage.read(RECORD);
    const record = bytes === null ? { secret: newSecret(), session: Math.floor(now) } : unpack(bytes);
    return new Identity(storage, device, record);
  }

  /** A new connection has a higher session, which is kept before it is used. */
  async nextSession() {
    this.session = Math.max(this.session, this.overtakenBy) + 1;
    this.sequence = 0;
    await this.storage.commit({ [RECORD]: pack({ secret: this.secret, session: this.session }) });
  }

  /** A packet that says `body`; each one takes a sequence number of its own. */
  seal(topic, kind, body) {
    this.sequence += 1;
    const written = BODIES[kind].write(body);
    return seal(topic, { kind, sender: this.device, epoch: this.session, sequence: this.sequence, body: written }, this.key);
  }
}
