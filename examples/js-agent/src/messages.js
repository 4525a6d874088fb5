// Every kind of message and its fields, as the protocol's document lists them.

import { check } from "./errors.js";
import {
  ABSENT, array, bin, bool, counter, float, hexDigits, id, int, map, oneOf, REQUIRED, scalar, str, struct,
} from "./fields.js";

const NAME = str(1, 128);
const DETAIL = str(0, 1024);
const HASH = bin(32);
const BLOB_BYTES = int(0, 8455716864);
const DATA = bin(0, 2 ** 24);
const INDEX = int(0, 65535);
const EXAMPLES = 1000000000;
const NOT_NEGATIVE = float((x) => x >= 0);
const SHARE = float((x) => x > 0 && x <= 1);
const TRAFFIC = array(counter, 2, 2);
const METRICS = map(float(), 64);
const BLOB = oneOf("delta", "snapshot");

const taskRef = struct({ name: [NAME, REQUIRED], version: [NAME, REQUIRED], schema_hash: [hexDigits(64), REQUIRED] });

const blobRef = struct({ size: [BLOB_BYTES, REQUIRED], sha256: [HASH, REQUIRED] });

const manifest = struct(
  {
    version: [counter, REQUIRED],
    chain_hash: [HASH, REQUIRED],
    base: [counter, REQUIRED],
    snapshot: [blobRef, REQUIRED],
    chain_bytes: [BLOB_BYTES, REQUIRED],
    delta: [blobRef, ABSENT],
    rebase: [bool, false],
    replica_hash: [HASH, ABSENT],
  },
  (it) => {
    check(it.base <= it.version, "bad-manifest", "a base that is newer");
    check((it.delta === undefined) === (it.version === 0), "bad-manifest", "delta");
    check(!it.rebase || (it.base === it.version && it.version > 0), "bad-manifest", "rebase");
    check(it.replica_hash !== undefined || !(it.rebase || it.version === 0), "bad-manifest", "replica hash");
  },
);

const cohort = struct(
  {
    devices: [array(id, 0, 64), ABSENT],
    rate: [float((x) => x >= 0 && x <= 1), ABSENT],
    seed: [bin(8, 32), ABSENT],
  },
  (it) => {
    const isRule = it.rate !== undefined && it.seed !== undefined;
    const isMixed = (it.rate !== undefined || it.seed !== undefined) === (it.devices !== undefined);
    check(!isMixed && (it.devices !== undefined || isRule), "malformed", "cohort");
  },
);

const trainSettings = struct({
  local_epochs: [int(1, 10000), 1],
  batch_size: [int(1, 1000000), 32],
  lr: [float((x) => x > 0), 0.05],
  momentum: [float((x) => x >= 0 && x < 1), 0.9],
  proximal_mu: [NOT_NEGATIVE, 0],
  extra: [map(scalar, 64), {}],
});

const uploadSettings = struct({
  codec: [NAME, REQUIRED],
  density: [SHARE, REQUIRED],
  first_density: [SHARE, REQUIRED],
  anneal_updates: [int(0, 10000), 0],
  residual_cap: [float((x) => x > 0), 10],
  coders: [array(NAME, 0, 64), []],
  code_ms: [int(0, 60000), 25],
  rounding: [oneOf("nearest", "stochastic"), "nearest"],
  per_tensor: [bool, false],
  update_bytes: [int(1, 8455716864), ABSENT],
});

const evaluation = struct({
  version: [counter, REQUIRED],
  num_examples: [int(0, EXAMPLES), REQUIRED],
  loss: [float(), REQUIRED],
  metrics: [METRICS, {}],
});

const updateHeader = struct({
  run: [id, REQUIRED],
  counter: [counter, REQUIRED],
  lease: [counter, REQUIRED],
  base_version: [counter, REQUIRED],
  schema_hash: [hexDigits(64), REQUIRED],
  num_examples: [int(1, EXAMPLES), REQUIRED],
  payload: [blobRef, REQUIRED],
  train_s: [NOT_NEGATIVE, 0],
  metrics: [METRICS, {}],
  evaluation: [evaluation, ABSENT],
  traffic: [TRAFFIC, ABSENT],
  residual_dropped: [float(), 0],
});

/** The bodies of all kinds. */
export const BODIES = {
  status: struct({
    online: [bool, REQUIRED],
    session: [counter, REQUIRED],
    public_key: [bin(32), REQUIRED],
    detail: [DETAIL, ""],
  }),
  announcement: struct({
    run: [id, REQUIRED],
    state: [oneOf("running", "finished", "stopped"), REQUIRED],
    task: [taskRef, REQUIRED],
    mode: [oneOf("sync", "fedasync", "fedbuff"), REQUIRED],
    round: [counter, REQUIRED],
    manifest: [manifest, REQUIRED],
    inline_delta: [DATA, ABSENT],
    cohort: [cohort, REQUIRED],
    lease: [counter, REQUIRED],
    lease_s: [NOT_NEGATIVE, REQUIRED],
    train: [trainSettings, REQUIRED],
    upload: [uploadSettings, REQUIRED],
    evaluate: [bool, false],
    seed: [counter, 0],
  }),
  turn: struct({ start: [int(0, 2 ** 32 - 1), REQUIRED], span: [int(0, 2 ** 32), REQUIRED] }),
  chunk: struct(
    {
      run: [id, REQUIRED],
      version: [counter, REQUIRED],
      blob: [BLOB, REQUIRED],
      index: [INDEX, REQUIRED],
      count: [int(1, 65536), REQUIRED],
      ref: [blobRef, REQUIRED],
      chain_hash: [HASH, REQUIRED],
      rebase: [bool, false],
      replica_hash: [HASH, ABSENT],
      data: [DATA, REQUIRED],
    },
    (it) => check(it.index < it.count, "malformed", "index"),
  ),
  lease: struct({
    run: [id, REQUIRED],
    lease: [counter, REQUIRED],
    version: [counter, REQUIRED],
    lease_s: [NOT_NEGATIVE, REQUIRED],
  }),
  receipt: struct(
    {
      run: [id, REQUIRED],
      counter: [counter, REQUIRED],
      outcome: [oneOf("accepted", "rejected"), REQUIRED],
      reason: [str(0, 64), ""],
      detail: [DETAIL, ""],
      residual: [oneOf("keep", "restore", "discard"), REQUIRED],
      digest: [bin(8), ABSENT],
    },
    (it) => check((it.outcome === "accepted") === (it.residual === "keep"), "bad-receipt", "outcome and residual"),
  ),
  credit: struct({
    run: [id, REQUIRED],
    counter: [counter, REQUIRED],
    have: [bin(0, 8192), REQUIRED],
    window: [int(0, 1024), REQUIRED],
  }),
  notice: struct({ code: [str(0, 64), REQUIRED], detail: [DETAIL, REQUIRED], session: [counter, ABSENT] }),

  presence: struct({
    online: [bool, REQUIRED],
    session: [counter, REQUIRED],
    public_key: [bin(32), REQUIRED],
    agent_version: [NAME, "0"],
    tasks: [array(taskRef, 0, 16), []],
    codecs: [array(NAME, 0, 64), []],
    num_examples: [counter, ABSENT],
    problem: [DETAIL, ""],
    traffic: [TRAFFIC, ABSENT],
  }),
  hello: struct({ run: [id, ABSENT], version: [counter, ABSENT] }),
  update: struct({ header: [updateHeader, REQUIRED], data: [DATA, REQUIRED] }),
  offer: struct({ header: [updateHeader, REQUIRED], chunk_bytes: [int(1024, 2 ** 24), REQUIRED] }),
  upload_chunk: struct({
    run: [id, REQUIRED],
    counter: [counter, REQUIRED],
    index: [INDEX, REQUIRED],
    data: [DATA, REQUIRED],
  }),
  report: struct({
    code: [
      oneOf("train-failed", "task-mismatch", "no-data", "task-error", "model-unreachable", "busy", "bad-message", "other"),
      REQUIRED,
    ],
    detail: [DETAIL, REQUIRED],
    run: [id, ABSENT],
    lease: [counter, ABSENT],
  }),
  get: struct({ run: [id, REQUIRED], version: [counter, REQUIRED], blob: [BLOB, REQUIRED], index: [INDEX, REQUIRED] }),
};

/** The header of an update, which waits on disk as well as on the wire. */
export const updateHeaderBody = updateHeader;
