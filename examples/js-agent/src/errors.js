/** What came from outside and is wrong. `reason` is one of the protocol's words. */
export class ProtocolError extends Error {
  constructor(reason, message) {
    super(message === undefined ? reason : `${reason}: ${message}`);
    this.name = "ProtocolError";
    this.reason = reason;
  }
}

/** Throw a ProtocolError unless `condition` holds. */
export function check(condition, reason, message) {
  if (!condition) throw new ProtocolError(reason, message);
}
