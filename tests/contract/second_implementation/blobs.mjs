// Blobs in grains, to and fro: section 6 of edge_sdk/protocol/README.md.
import { hex, must, sha256 } from "./wire.mjs";

const GRAIN = 16384, MOST_CHUNK = 131072, MOST_WINDOW = 128, LEAST_S = 5, MOST_S = 30, GIVE_UP_S = 180;
const clock_s = () => performance.now() / 1000;

/** A blob on its way here: `ask(ranges)` asks for more, the promise `whole` has its verified bytes. */
export class Download {
  #window = 2;
  #asked = new Map();
  #came = new Set();
  #patience_s = LEAST_S;
  #heard_s = clock_s();

  constructor({ digest, size_bytes }, ask) {
    Object.assign(this, { digest, bytes: Buffer.alloc(size_bytes), ask, grains: Math.ceil(size_bytes / GRAIN) });
    this.whole = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.#advance();
  }

  /** Nothing is on its way any more: the link, or whom it comes from, is new. */
  restart() {
    this.#asked.clear();
    this.#window = 2;
    this.#advance();
  }

  /** Call it every second or so. */
  tick() {
    const now_s = clock_s();
    if (now_s - this.#heard_s > GIVE_UP_S) this.reject(new Error(`nothing came of ${this.digest}`));
    const late = [...this.#asked.keys()].filter((grain) => now_s - this.#asked.get(grain).at_s > this.#patience_s);
    if (late.length) this.#patience_s = Math.min(MOST_S, 2 * this.#patience_s);
    this.#request(late, true);
  }

  take({ offset, data, data_digest }) {
    const first = offset / GRAIN, end = offset + data.length;
    const grains = Array.from({ length: Math.ceil(data.length / GRAIN) }, (_, i) => first + i);
    const isWhole = data.length > 0 && (end % GRAIN === 0 || end === this.bytes.length);
    if (!isWhole || !grains.every((grain) => this.#asked.has(grain)) || hex(sha256(data)) !== hex(data_digest)) return;
    this.bytes.set(data, offset);
    this.#heard_s = clock_s();
    grains.forEach((grain) => this.#took(grain, this.#asked.get(grain)));
    this.#advance();
  }

  #took(grain, { at_s, isAgain }) {
    const seconds = clock_s() - at_s, change = seconds < 1 ? 1 : seconds > 6 ? -1 : 0;
    this.#asked.delete(grain);
    this.#came.add(grain);
    if (isAgain) return;
    this.#patience_s = Math.min(MOST_S, Math.max(LEAST_S, 3 * seconds));
    this.#window = Math.min(MOST_WINDOW, Math.max(2, this.#window + change));
  }

  #advance() {
    if (this.#came.size === this.grains) {
      if (hex(sha256(this.bytes)) === this.digest) this.resolve(this.bytes);
      else this.reject(new Error(`what came is not ${this.digest}`));
    } else if (this.#window - this.#asked.size >= this.#window / 2) {
      const isThere = (grain) => this.#came.has(grain) || this.#asked.has(grain);
      const lacking = [...Array(this.grains).keys()].filter((grain) => !isThere(grain));
      this.#request(lacking.slice(0, this.#window - this.#asked.size), false);
    }
  }

  #request(grains, isAgain) {
    const end = (grain) => Math.min((grain + 1) * GRAIN, this.bytes.length);
    for (const grain of grains) this.#asked.set(grain, { at_s: clock_s(), isAgain });
    if (grains.length) this.ask(grains.map((grain) => [grain * GRAIN, end(grain)]));
  }
}

/** The chunks that answer `ranges` of a blob, in messages of at most `most` bytes. */
export function* chunksOf(digest, blob, ranges, most) {
  const step = Math.floor(Math.min(MOST_CHUNK, most - 1024) / GRAIN) * GRAIN;
  must(step > 0, `the broker takes ${most} bytes, too few`);
  for (const [start, stop] of ranges) {
    const end = Math.min(Math.ceil(stop / GRAIN) * GRAIN, blob.length);
    for (let offset = Math.floor(start / GRAIN) * GRAIN; offset < end; offset += step) {
      const data = blob.subarray(offset, Math.min(offset + step, end));
      yield { digest, offset, data, data_digest: sha256(data) };
    }
  }
}
