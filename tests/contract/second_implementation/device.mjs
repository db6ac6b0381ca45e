// A device that is written from edge_sdk/protocol/README.md alone. Instead of training it adds 1/1024 to every weight.
// It verifies and fetches the releases that it is to run, has nothing to run them on, and says so.
import * as fs from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { connect as connectSecurely } from "node:tls";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { decode, encode } from "@msgpack/msgpack";
import mqtt from "mqtt";
import { Download, chunksOf } from "./blobs.mjs";
import { enroll } from "./identity.mjs";
import * as wire from "./wire.mjs";

// Where a coordinator is named it enrols there; `declines` is what it declines the first offer with.
const names = ["broker", "coordinator", "declines", "device", "fingerprint", "root", "state-dir", "token"], { must } = wire;
const options = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) }).values;
const { device, coordinator, token, fingerprint } = options, MIB = 2 ** 20, CHANGE = 1 / 1024;
const snapshot = {
  memory_total_bytes: 4096 * MIB, memory_available_bytes: 2048 * MIB, threads: 1,
  training_memory_bytes: 1024 * MIB, inference_memory_bytes: 512 * MIB,
};
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const clock_s = () => performance.now() / 1000;

// -- what outlives the process

const path = (name) => join(options["state-dir"], name);
for (const name of ["blobs", "outbox"]) fs.mkdirSync(path(name), { recursive: true });
const kept = (name) => (fs.existsSync(path(name)) ? fs.readFileSync(path(name)) : null);

function keep(name, bytes) {
  const file = fs.openSync(path("new"), "w");
  fs.writeSync(file, bytes);
  fs.fsyncSync(file);
  fs.closeSync(file);
  fs.renameSync(path("new"), path(name));
}

const first = { session: Date.now(), root: null, issued_s: 0, tasks: {}, answered: {} };
const state = kept("state") ? decode(kept("state")) : first;
const save = () => keep("state", encode(state));
if (coordinator && !state.enrolled) state.enrolled = await enroll(coordinator, token, fingerprint, device);
const { fleet, broker, root } = state.enrolled ?? { fleet: "default", ...options, root: fs.readFileSync(options.root) };
state.root ??= wire.opened(wire.envelopeOfJson(root), "Root", "root").content;
state.session += 1;
save();

// -- the link

const { hostname: host, port, protocol } = new URL(broker), isSecure = protocol === "mqtts:";
const isNear = ["127.0.0.1", "localhost", "[::1]"].includes(host);
must(isSecure || isNear, "a connection in the clear would leave this machine");
function open() {
  if (!isSecure) return connect(port || 1883, host).setNoDelay(true);
  const { authority: ca, certificate: cert, key } = state.enrolled;
  return connectSecurely({ host, port: port || 8883, ca, cert, key }).setNoDelay(true);
}
const topic = (channel) => `raffm/1/${fleet}/${device}/${channel}`;
const offline = wire.write("offline", { device, session: state.session });
const client = new mqtt.MqttClient(open, {
  protocolVersion: 5, clientId: device, clean: true, keepalive: 60, reconnectPeriod: 0, resubscribe: false,
  will: { topic: topic("state"), payload: offline, qos: 1, retain: true },
});
let isHeard, announced, mostPacket, pause_s = 0, ready_s = 0, resend_s = 0, resendPause_s = 2;

const publish = (channel, payload, retain = false) =>
  client.publishAsync(topic(channel), payload, { qos: 1, retain }).catch(({ message }) => tell("lost", { message }));
const say = (type, fields) => publish(type === "chunk" ? "chunk/up" : "up", wire.write(type, fields));
const hello = { device, session: state.session, profile: "measured", agent_version: "js", snapshot };
const sayHello = () => publish("state", wire.write("hello", hello), true);

client.on("connect", async ({ properties }) => {
  [isHeard, pause_s, mostPacket] = [false, 0, properties?.maximumPacketSize ?? Infinity];
  await client.subscribeAsync([`raffm/1/${fleet}/announce`, topic("down"), topic("chunk/down")], { qos: 1 });
  sayHello();
  sendAgain();
});
client.on("close", async () => {
  pause_s = pause_s ? Math.min(2 * pause_s, 20 + 40 * Math.random()) : 0.5 + 1.5 * Math.random();
  await sleep(1000 * pause_s);
  client.reconnect();
});
client.on("error", (error) => tell("error", { message: error.message }));
client.on("message", (_, payload) => {
  try {
    const message = wire.read(payload);
    isHeard ||= message.type !== "announce";
    hear[message.type]?.(message);
  } catch (error) {
    tell("dropped", { message: error.message });
  }
});

/** The link or the coordinator is new: what was on its way is lost. */
function sendAgain() {
  [ready_s, resend_s, resendPause_s] = [0, 0, 2];
  for (const download of downloads.values()) download.restart();
}

setInterval(() => {
  if (!client.connected) return;
  for (const download of downloads.values()) download.tick();
  if (clock_s() >= resend_s) {
    for (const id of fs.readdirSync(path("outbox"))) publish("up", kept(`outbox/${id}`));
    [resend_s, resendPause_s] = [clock_s() + resendPause_s, Math.min(60, 2 * resendPause_s)];
  }
  if (work || clock_s() < ready_s) return;
  ready_s = clock_s() + 10;
  if (!isHeard) sayHello();
  say("ready", { snapshot });
}, 250);

// -- blobs

const downloads = new Map(), wishes = [];
let downloaded = 0, isServing = false;

async function fetchBlob(entry) {
  const { digest } = entry;
  if (!kept(`blobs/${digest}`)) {
    const ask = (ranges) => say("chunk-request", { digest, ranges });
    if (!downloads.has(digest)) downloads.set(digest, new Download(entry, ask));
    const bytes = await downloads.get(digest).whole.finally(() => downloads.delete(digest));
    downloaded += bytes.length;
    keep(`blobs/${digest}`, bytes);
  }
  return kept(`blobs/${digest}`);
}

async function fetchAll(manifest) {
  const found = {};
  for (const entry of manifest) found[entry.part] = await fetchBlob(entry);
  return found;
}

async function serve(request) {
  wishes.push(request);
  if (isServing) return;
  isServing = true;
  for (let wish; (wish = wishes.shift()); ) {
    const bytes = kept(`blobs/${wish.digest}`);
    if (!bytes) await say("blob-gone", { digest: wish.digest });
    else for (const chunk of chunksOf(wish.digest, bytes, wish.ranges, mostPacket)) await say("chunk", chunk);
  }
  isServing = false;
}

// -- updates

let work = null;

async function take(offer) {
  const { task, round, deadline_s } = offer, { declines: failure } = options;
  if (state.answered[task] >= round) return sendAgain();
  if (work?.task === task && work.round === round) return;
  if (failure && !state.hasDeclined) {
    [state.hasDeclined, ready_s] = [true, 0];
    save();
    tell("declined", { task, round });
    return say("declined", { task, round, failure });
  }
  const started_s = clock_s(), before = downloaded;
  work = offer;
  try {
    const late = sleep(1000 * deadline_s, null, { ref: false }).then(() => must(false, "deadline"));
    const { weights } = await Promise.race([fetchAll(offer.manifest), late]);
    const spent = { seconds: clock_s() - started_s, downloaded_bytes: downloaded - before };
    if (work === offer) answer(offer, weights, spent);
  } catch (error) {
    const failure = error.message === "deadline" ? "deadline" : "transfer";
    say("declined", { task, round, failure, detail: error.message.slice(0, 500) });
  }
  if (work === offer) work = null;
}

function answer({ task, round, base_version, encoding }, weights, spent) {
  const changes = wire.shapesIn(weights).map(({ name, shape }) => {
    const size = shape.reduce((product, length) => product * length, 1);
    return { name, shape, delta: new Float32Array(size).fill(CHANGE) };
  });
  const update = wire.updateFile(changes, encoding), digest = wire.hex(wire.sha256(update));
  const update_id = wire.updateId(device, task, round, base_version, digest);
  const report = {
    samples: 32, steps: 1, loss_first: 1, loss_last: 1, peak_memory_bytes: process.memoryUsage().rss,
    uploaded_bytes: update.length, encoding, ...spent,
  };
  keep(`blobs/${digest}`, update);
  const entry = { part: "weights", digest, size_bytes: update.length };
  const message = { update_id, task, round, base_version, update: entry, report };
  keep(`outbox/${update_id}`, wire.write("update-ready", message));
  tell("trained", { task, round, weights: wire.hex(wire.sha256(weights)) });
  state.answered[task] = round;
  save();
  sendAgain();
}

// -- releases

const same = (one, other) => Buffer.from(encode(one)).equals(encode(other));
const fresh = (what, { expires_s }) =>
  must(Math.max(Date.now() / 1000, state.root.issued_s, state.issued_s) < expires_s, `the ${what} has expired`);

function follow(envelope) {
  const { root: known } = state, next = decode(decode(envelope).payload);
  if (next.version <= known.version) return;
  const { content: root } = wire.opened(envelope, "Root", "root", known.root, (content) => content.root);
  must(root.version === known.version + 1, "a root is missing");
  if (!same(root.release, known.release)) state.issued_s = 0;
  for (const memory of Object.values(state.tasks)) {
    if (!same(root.release, known.release)) memory.release = 0;
    if (!same(root.round, known.round)) memory.number = 0;
  }
  state.root = root;
  save();
}

function assigned({ envelope, roots }) {
  roots.forEach(follow);
  fresh("root", state.root);
  const { content: assignment } = wire.opened(envelope, "Assignment", "round", state.root.round);
  const memory = (state.tasks[assignment.task] ??= { release: 0, number: 0, isLeft: false, report: null });
  const isOlder = assignment.number < memory.number || (assignment.number === memory.number && memory.isLeft);
  must(assignment.fleet === fleet && assignment.device === device, "the assignment is another device's");
  must(!isOlder || (assignment.number === memory.number && assignment.export === null), "the assignment is old");
  fresh("assignment", assignment);
  return { assignment, memory };
}

function exportOf({ fleet, task, release, group, export: name, manifest: digest }, { release: newest }, envelope) {
  const { payload, content } = wire.opened(envelope, "ReleaseManifest", "release", state.root.release);
  must(wire.hex(wire.sha256(payload)) === digest, "the assignment is of another release");
  must(content.fleet === fleet && content.task === task && content.release === release, "the release is another");
  must(!content.groups.length || content.groups.includes(group), "the release is for other groups");
  must(content.release >= newest, "the release is old");
  fresh("release", content);
  state.issued_s = Math.max(state.issued_s, content.issued_s);
  return content.exports.find((each) => each.name === name) ?? must(false, "the release has no such export");
}

async function judge(message) {
  const { assignment, memory } = assigned(message);
  const { number, task, release } = assignment, isLeft = assignment.export === null;
  if (memory.number !== number || memory.isLeft !== isLeft) memory.report = null;
  if (!memory.report) {
    let detail = "";
    try {
      const chosen = isLeft ? null : exportOf(assignment, memory, message.manifest);
      Object.assign(memory, { number, isLeft });
      if (chosen) tell("fetched", { task, release, root: state.root.version, parts: Object.keys(await fetchAll(chosen.manifest)) });
      if (chosen) detail = "this device has nothing to run it on";
    } catch (error) {
      detail = error.message.slice(0, 500);
    }
    memory.report = { release, task, assignment: number, healthy: false, standing: "rolled-back", detail };
    save();
  }
  say("release-report", memory.report);
}

// -- what the coordinator says

const hear = {
  announce({ session }) {
    if (announced !== undefined && announced !== session) sendAgain();
    announced = session;
  },
  offer: take,
  wait: ({ retry_after_s }) => (ready_s = clock_s() + retry_after_s),
  receipt({ update_id, verdict, reason }) {
    const update = path(`outbox/${update_id}`);
    if (!fs.existsSync(update)) return; // said twice, as whatever is sent again is answered again
    fs.rmSync(update);
    ready_s = 0;
    tell("receipt", { verdict, reason });
  },
  release: (message) => judge(message).catch((error) => tell("refused", { message: error.message })),
  refused: ({ reason }) => tell("refused", { message: reason }),
  "chunk-request": serve,
  chunk: (chunk) => downloads.get(chunk.digest)?.take(chunk),
  "blob-gone": ({ digest }) => downloads.get(digest)?.reject(new Error(`${digest} is gone`)),
};

process.once("SIGTERM", async () => {
  await publish("state", offline, true);
  process.exit(0);
});
