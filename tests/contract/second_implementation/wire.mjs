// The bytes of the wire, from edge_sdk/protocol/README.md alone; its tables are read and become the checks.
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { decode, encode } from "@msgpack/msgpack";

const README = readFileSync(process.env.WIRE_README, "utf8");
const PAYLOAD_BYTES = 65536, CHUNK_PAYLOAD_BYTES = 132096, HEADER_BYTES = 1 << 20, TEXT_CHARACTERS = 500;

export const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
export const hex = (bytes) => Buffer.from(bytes).toString("hex");

export function must(holds, what) {
  if (!holds) throw new Error(what);
}

// -- sections 3 and 4: messages, and what they are made of

const isText = (value) => typeof value === "string" && [...value].length <= TEXT_CHARACTERS;
const isNumber = (value) => typeof value === "number";
const isCount = (value) => Number.isInteger(value) && value >= 0 && value <= 2 ** 53;
const isBytes = (value) => value instanceof Uint8Array;
const PLAIN = {
  name: (value) => isText(value) && /^[a-z0-9-]{1,64}$/.test(value),
  digest: (value) => isText(value) && /^[0-9a-f]{64}$/.test(value),
  text: isText,
  boolean: (value) => typeof value === "boolean",
  number: isNumber,
  share: (value) => isNumber(value) && value >= 0 && value <= 1,
  integer: Number.isInteger,
  count: isCount,
  bytes: isBytes,
  "32 bytes": (value) => isBytes(value) && value.length === 32,
  "64 bytes": (value) => isBytes(value) && value.length === 64,
  "[start, stop)": (value) => Array.isArray(value) && value.length === 2 && value.every(isCount),
};
const structs = {}, enums = {}, senders = {};

function table(mark) {
  const lines = README.split(`<!-- ${mark} -->`)[1].split("<!-- end -->")[0].match(/^\| .*/gm).slice(1);
  return lines.map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim().replace(/^`([^`]*)`$/, "$1")));
}

/** What checks a value of a type such as `array of numbers? > 0, 1 to 16`, and throws or returns it. */
function checkOf(type) {
  const [, kind, least, most] = type.match(/^(.*?)(?:, (?:(\d+) to|≤) (\d+))?$/);
  const [, bare, range] = kind.replace(/[`?]/g, "").match(/^(.*?)( in .*| [≥>] .*)?$/);
  const isArray = bare.startsWith("array of "), plural = bare.replace("array of ", "");
  const name = !isArray || plural in PLAIN || plural in structs ? plural : plural.replace(/s$/, "");
  const inRange = rangeOf(range ?? "");
  const one = (value, where) => {
    if (name in structs) return readStruct(name, value, where);
    must(name in enums ? enums[name].includes(value) : PLAIN[name](value) && inRange(value), `${where}: no ${name}`);
    return value;
  };
  return (value, where) => {
    if (value === null && kind.includes("?")) return null;
    must(!isArray || Array.isArray(value), `${where}: no array`);
    must(most === undefined || (value.length >= (least ?? 0) && value.length <= most), `${where}: its length`);
    return isArray ? value.map((each) => one(each, where)) : one(value, where);
  };
}

function rangeOf(text) {
  const number = (digits) => digits.split("^").map(Number).reduce((base, power) => base ** power);
  const [, open, low, high] = text.match(/ in ([[(])(.*), (.*)]/) ?? [];
  const [, sign, least] = text.match(/ ([≥>]) (.*)/) ?? [];
  if (open) return (value) => (open === "(" ? value > number(low) : value >= number(low)) && value <= number(high);
  return (value) => !sign || (sign === ">" ? value > number(least) : value >= number(least));
}

function readStruct(name, value, where = name) {
  must(typeof value === "object" && value !== null && !Array.isArray(value), `${where}: no map`);
  const isClosed = name === "Envelope" || name === "Signature";
  must(!isClosed || Object.keys(value).every((key) => key in structs[name]), `${where}: another field`);
  const read = ([field, { check, fallback }]) => {
    must(field in value || fallback !== undefined, `${where}.${field} is missing`);
    return [field, check(field in value ? value[field] : fallback, `${where}.${field}`)];
  };
  return Object.fromEntries(Object.entries(structs[name]).map(read));
}

for (const [kind, values] of table("enums")) enums[kind] = values.match(/[^`, ]+/g);
for (const mark of ["values", "signed", "messages: device", "messages: coordinator", "messages: both"]) {
  let name;
  for (const [first, field, cell] of table(mark)) {
    name = first || name;
    senders[name] = mark.replace("messages: ", "");
    const [type, text] = cell.split(" = "), isWord = text?.startsWith("`");
    const fallback = text && (isWord ? text.slice(1, -1) : JSON.parse(text));
    (structs[name] ??= {})[field] = { check: (...given) => checkOf(type)(...given), fallback };
  }
}

/** A message of the coordinator's; throws where it is none. */
export function read(payload) {
  must(payload.length <= CHUNK_PAYLOAD_BYTES, "a payload is too long");
  const message = decode(payload);
  must(["coordinator", "both"].includes(senders[message?.type]), `no type of the coordinator's: ${message?.type}`);
  must(payload.length <= PAYLOAD_BYTES || message.type === "chunk", `${message.type} is too long`);
  return { type: message.type, ...readStruct(message.type, message) };
}

/** The bytes of a message of a device's. */
export const write = (type, fields) => Buffer.from(encode({ type, ...readStruct(type, fields) }));

// -- section 7: tensor files and updates

const bytesOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
const WIDTHS = { F32: 4, U32: 4, F16: 2, I8: 1 };

/** Names and shapes of a tensor file. */
export function shapesIn(file) {
  const length = Number(file.readBigUInt64LE());
  must(length <= HEADER_BYTES, "a header is too long");
  return Object.entries(JSON.parse(file.subarray(8, 8 + length))).map(([name, { shape }]) => ({ name, shape }));
}

function tensorFile(tensors) {
  const header = {}, sorted = tensors.toSorted((one, other) => WIDTHS[other.dtype] - WIDTHS[one.dtype]);
  let end = 0;
  for (const { name, dtype, shape, data } of sorted)
    header[name] = { dtype, shape, data_offsets: [end, (end += data.byteLength)] };
  const json = JSON.stringify(header), text = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
  const length = bytesOf(BigUint64Array.of(BigInt(text.length)));
  return Buffer.concat([length, text, ...sorted.map(({ data }) => bytesOf(data))]);
}

function half(value) {
  const size = Math.min(Math.abs(value), 65504), exponent = Math.max(Math.floor(Math.log2(size)), -14);
  const scaled = size * 2 ** (10 - exponent), floor = Math.floor(scaled), rest = scaled - floor;
  const bits = floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1));
  return (value < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + bits;
}

const ENCODINGS = {
  fp32: ({ name, shape, delta }) => [{ name, dtype: "F32", shape, data: delta }],
  fp16: ({ name, shape, delta }) => [{ name, dtype: "F16", shape, data: Uint16Array.from(delta, half) }],
  int8: ({ name, shape, delta }) => {
    const rows = shape.length > 1 ? shape[0] : 1, width = delta.length / rows, row = (i) => Math.floor(i / width);
    const scale = new Float32Array(rows);
    delta.forEach((value, i) => (scale[row(i)] = Math.max(scale[row(i)], Math.abs(value) / 126)));
    const data = Int8Array.from(delta, (value, i) => Math.floor(value / (scale[row(i)] || 1) + Math.random()));
    return [{ name: `${name}:scale`, dtype: "F32", shape: [rows], data: scale }, { name, dtype: "I8", shape, data }];
  },
  topk: ({ name, delta }, share) => {
    const shape = [Math.max(1, Math.ceil(share * delta.length))];
    const largest = [...delta.keys()].sort((one, other) => Math.abs(delta[other]) - Math.abs(delta[one]));
    const index = Uint32Array.from(largest.slice(0, shape[0])).sort();
    const data = Uint16Array.from(index, (i) => half(delta[i]));
    return [{ name: `${name}:index`, dtype: "U32", shape, data: index }, { name, dtype: "F16", shape, data }];
  },
};

/** The file of an update; each of `changes` is a name, a shape, and a Float32Array `delta`. */
export const updateFile = (changes, { kind, share }) =>
  tensorFile(changes.flatMap((change) => ENCODINGS[kind](change, share)));

export const updateId = (...parts) => hex(sha256(parts.join("\0")));

// -- section 8: envelopes

export function envelopeOfJson(json) {
  const bytes = (text) => Buffer.from(text, "base64"), { role, payload, signatures } = JSON.parse(json);
  const signed = signatures.map(({ key, signature }) => ({ key: bytes(key), signature: bytes(signature) }));
  return Buffer.from(encode({ role, payload: bytes(payload), signatures: signed }));
}

/** What was signed: `{payload, content}`. `keysOf(content)` adds those that have to have signed, beside `keys`. */
export function opened(envelope, kind, role, keys, keysOf) {
  const { role: given, payload, signatures } = readStruct("Envelope", decode(envelope));
  must(given === role, `signed as ${given}, not ${role}`);
  const signers = new Set(signatures.map(({ key }) => hex(key)));
  must(signers.size === signatures.length, "a key signs twice");
  for (const { key, signature } of signatures) {
    const jwk = { kty: "OKP", crv: "Ed25519", x: Buffer.from(key).toString("base64url") };
    const signed = Buffer.concat([Buffer.from(`raffm/1/${role}\0`), payload]);
    must(verify(null, signed, createPublicKey({ key: jwk, format: "jwk" }), signature), "a signature does not hold");
  }
  const count = (trusted) => trusted.keys.filter((key) => signers.has(hex(key))).length;
  must(!keys || count(keys) >= keys.threshold, `too few keys of ${role}`);
  const content = readStruct(kind, decode(payload));
  must(!keysOf || count(keysOf(content)) >= keysOf(content).threshold, `too few keys of ${role}`);
  return { payload, content };
}
