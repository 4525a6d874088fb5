// The topics of one federation, seen by one device.

import { check } from "./errors.js";

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const CHUNK = /^([ds])(0|[1-9][0-9]{0,4})$/;

export const isName = (text) => NAME.test(text);

/** All that a device publishes and subscribes to. */
export function topicsOf(federation, device) {
  if (!isName(federation) || !isName(device)) throw new RangeError("a name has a-z 0-9 . _ - and at most 64 of them");
  const root = `fedmq/v1/${federation}`;
  return {
    status: `${root}/coordinator/status`,
    run: `${root}/coordinator/run`,
    presence: `${root}/dev/${device}/presence`,
    up: (kind) => `${root}/dev/${device}/up/${kind}`,
    down: `${root}/dev/${device}/down/+`,
    downPrefix: `${root}/dev/${device}/down/`,
    chunk: (run, version, part, index) => `${root}/model/${run}/${version}/${part}${index}`,
    modelPrefix: `${root}/model/`,
  };
}

/** What a topic of the coordinator's is for: `{ kind, run?, version?, part?, index? }`. */
export function parseTopic(topics, topic) {
  if (topic === topics.status) return { kind: "status" };
  if (topic === topics.run) return { kind: "announcement" };
  if (topic.startsWith(topics.downPrefix)) return { kind: topic.slice(topics.downPrefix.length) };
  check(topic.startsWith(topics.modelPrefix), "malformed", `topic ${topic}`);
  const [run, version, chunk, ...more] = topic.slice(topics.modelPrefix.length).split("/");
  const match = CHUNK.exec(chunk ?? "");
  check(isName(run) && /^(0|[1-9][0-9]{0,15})$/.test(version ?? "") && match && more.length === 0, "malformed", "topic");
  return { kind: "chunk", run, version: Number(version), part: match[1], index: Number(match[2]) };
}
