// One connection to the broker, over TCP in Node or WebSockets anywhere, by MQTT.js.

import mqtt from "mqtt";

const CONNECT_MS = 10000;
const KEEP_ALIVE_S = 30;

/** Not every broker speaks MQTT 5, which tells the largest packet; 3.1.1 is enough. */
const isVersionRefused = (error) => error.code === 1 || error.code === 0x84;

function connectOnce(url, options, { onMessage, onClose }) {
  return new Promise((resolve, reject) => {
    const client = mqtt.connect(url, {
      ...options,
      clean: true,
      reconnectPeriod: 0, // a new connection is a new session with a new last will: not MQTT.js's affair
      connectTimeout: CONNECT_MS,
      keepalive: KEEP_ALIVE_S,
      resubscribe: false,
      queueQoSZero: false,
    });
    let isOpen = false;
    const traffic = countBytes(client.stream);
    client.on("connect", (connack) => {
      isOpen = true;
      resolve(new Link(client, connack.properties?.maximumPacketSize ?? Infinity, traffic));
    });
    client.on("message", (topic, payload) => onMessage(topic, new Uint8Array(payload)));
    client.on("error", (error) => {
      if (!isOpen) reject(error);
      client.end(true);
    });
    client.on("close", () => {
      if (isOpen) onClose();
      else reject(new Error(`no connection to ${url}`));
    });
  });
}

/** MQTT's own bytes in both directions, [sent, received]; over WebSockets without their frames. */
function countBytes(stream) {
  const counts = [0, 0];
  const write = stream.write.bind(stream);
  stream.write = (bytes, ...rest) => {
    counts[0] += bytes.length;
    return write(bytes, ...rest);
  };
  stream.on("data", (bytes) => { counts[1] += bytes.length; });
  return counts;
}

export class Link {
  /** `packetLimit`: bytes of the largest packet; `traffic`: bytes sent and received so far. */
  constructor(client, packetLimit, traffic) {
    this.client = client;
    this.packetLimit = packetLimit;
    this.traffic = traffic;
  }

  /**
   * Connect with a clean session. `will`: `{ topic, payload }`, retained. `events`: `onMessage(topic, payload)`
   * and `onClose()`.
   */
  static async open(url, { will, username, password, clientId }, events) {
    const options = { will: { ...will, payload: toBuffer(will.payload), qos: 1, retain: true }, clientId };
    if (username !== undefined) Object.assign(options, { username, password });
    try {
      return await connectOnce(url, { ...options, protocolVersion: 5 }, events);
    } catch (error) {
      if (!isVersionRefused(error)) throw error;
      return connectOnce(url, { ...options, protocolVersion: 4 }, events);
    }
  }

  subscribe(topics) {
    return this.client.subscribeAsync(topics, { qos: 1 });
  }

  unsubscribe(topic) {
    return this.client.unsubscribeAsync(topic);
  }

  publish(topic, payload, { retain = false } = {}) {
    return this.client.publishAsync(topic, toBuffer(payload), { qos: 1, retain });
  }

  /** Say goodbye to the broker, which then keeps the last will to itself. */
  close() {
    return this.client.endAsync();
  }

  /** Break the connection: the broker publishes the last will. */
  abort() {
    this.client.end(true);
  }
}

/** MQTT.js wants a Buffer where there is one. */
function toBuffer(bytes) {
  return globalThis.Buffer?.from(bytes.buffer, bytes.byteOffset, bytes.length) ?? bytes;
}
