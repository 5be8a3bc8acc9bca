// One conversation with the server, over one connection or several: what server/client.py is in Python.
// It keeps the audio since the last bookmark; after a lost connection it resumes there, and nothing is told twice.

const MAX_AHEAD_MS = 10_000; // audio sent and not yet decoded
const KEEP_MS = 60_000; // longer than any utterance: audio decoded that long ago, with no word told, was silence
const KEEPALIVE_MS = 3_000;
const PATIENCE = 10; // keepalives without an answer to audio: then the network is gone and has not said so
const FIRST_DELAY_MS = 250; // between attempts to reconnect
const LONGEST_DELAY_MS = 8_000;
const RETRIES = 40; // that bring nothing: some five minutes
const CLOSED_SLACK_MS = 100; // what the server's count of the audio may lack, by rounding
const HOPELESS = new Set([1002, 1003, 1007, 1008, 1009]); // close codes: the same would happen again

/** Why the conversation cannot go on. `transient`: it may pass. `code` is the server's. */
export class Lost extends Error {
  constructor(message, { transient = true, code = "lost" } = {}) {
    super(message);
    this.transient = transient;
    this.code = code;
  }
}

/** The models that the server offers. Throws Lost; its code is "bad_key" where the server wants another key. */
export async function offered(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("v1/models", { headers, cache: "no-store" }).catch(() => {
    throw new Lost("The server cannot be reached: is it running?", { code: "unreachable" });
  });
  if (answer.status === 401) {
    const message = key ? "The server does not know this key." : "The server wants a key: type it above Speak.";
    throw new Lost(message, { transient: false, code: "bad_key" });
  }
  if (!answer.ok) throw new Lost(`The server does not say what it offers (HTTP ${answer.status}).`);
  return (await answer.json()).data;
}

/** Why a connection was refused, which browsers do not tell. */
async function refusal(key) {
  try {
    await offered(key);
    const room = await fetch("readyz", { cache: "no-store" });
    if (room.ok) return new Lost("The server refused the conversation.");
    const { draining } = await room.json();
    return new Lost(`The server ${draining ? "is restarting" : "is full"}: try again in a few seconds.`);
  } catch (error) {
    return error instanceof Lost ? error : new Lost("The server cannot be reached: is it running?");
  }
}

/** What was said since the last bookmark: Int16Arrays, and "close" at the end. Entries are numbered from 0 on. */
class Tape {
  constructor(rate, startMs) {
    this.rate = rate;
    this.entries = [];
    this.first = 0; // the number of the first entry that is kept
    this.start = this.end = Math.floor((startMs * rate) / 1000); // samples on the timeline
    this.baseMs = startMs; // where the audio that is kept begins
    this.closed = false;
  }

  get endMs() {
    return Math.floor((this.end * 1000) / this.rate);
  }

  record(samples) {
    this.entries.push(samples);
    this.end += samples.length;
  }

  close() {
    this.entries.push("close");
    this.closed = true;
  }

  entry(number) {
    return this.entries[number - this.first];
  }

  /** Drops the audio before `audioMs`; close is never dropped. */
  forget(audioMs) {
    const cut = Math.min(Math.floor((audioMs * this.rate) / 1000), this.end);
    if (cut < this.start || audioMs <= this.baseMs) return;
    this.baseMs = Math.min(audioMs, this.endMs);
    let whole = 0;
    while (whole < this.entries.length && this.entries[whole] !== "close") {
      if (this.start + this.entries[whole].length > cut) break;
      this.start += this.entries[whole++].length;
    }
    this.entries.splice(0, whole);
    this.first += whole;
    if (this.start < cut) {
      this.entries[0] = this.entries[0].subarray(cut - this.start);
      this.start = cut;
    }
  }
}

/**
 * Says audio, tells what is heard. `options`: { query, key, rate, startMs }; `tell`: functions
 *   heard(message)   a partial or a final, each once, as the native protocol has them
 *   behind(ms)       how far the text was behind the audio when a chunk's answer came
 *   state(name)      "listening" | "reconnecting" | "finishing"
 */
export class Conversation {
  #options;
  #tell;
  #tape;
  #bookmark = null; // where the tape begins; null at the very beginning
  #coming = null; // that of the final which comes next
  #socket; #keepalive;
  #over = false; // given up by the caller
  #met = false; // the server has answered before
  #tries = 0;
  #unanswered = 0; // keepalives since the server's last message
  #next = 0; // the number of the entry to be said next
  #saidMs = 0;
  #saidAt = 0; // when audio was last recorded
  #decodedMs = 0; // by the server of this connection
  #furthestMs = 0; // by any
  #owed = false; // words were told whose final is still to come, however late it is
  #partialMs = -1; // how far the partials told go
  #againMs = -1; // likewise, before this connection
  #wake = () => {};

  constructor(options, tell) {
    this.#options = options;
    this.#tell = tell;
    this.#tape = new Tape(options.rate, options.startMs);
    if (options.startMs) this.#bookmark = { audio_ms: options.startMs };
    this.#furthestMs = options.startMs;
  }

  /** Where on the timeline the audio ends, and so where a next conversation may begin. */
  get endMs() {
    return this.#tape.endMs;
  }

  say(samples) {
    if (this.#tape.closed) return;
    this.#tape.record(samples);
    this.#saidAt = performance.now();
    this.#speak();
  }

  /** No more audio: what was said is finished, then `run` ends. */
  finish() {
    if (this.#tape.closed) return;
    this.#tape.close();
    this.#tell.state(this.#ready ? "finishing" : "reconnecting");
    this.#speak();
  }

  /** Ends at once, without the words that are still to come. */
  abandon() {
    this.#over = true;
    this.#socket?.close();
    this.#wake();
  }

  /** Until all is said and told. Throws Lost. */
  async run() {
    const wake = () => this.#wake();
    window.addEventListener("online", wake);
    const keepalive = setInterval(() => this.#stayAlive(), KEEPALIVE_MS);
    try {
      for (let lost; (lost = await this.#converse()) && !this.#over; ) {
        if (!this.#met || !lost.transient || this.#tries >= RETRIES) throw lost;
        this.#tell.state("reconnecting");
        await this.#pause();
        if (this.#over) return;
      }
    } finally {
      clearInterval(keepalive);
      window.removeEventListener("online", wake);
    }
  }

  get #ready() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #send(message) {
    if (this.#ready) this.#socket.send(JSON.stringify(message));
  }

  #stayAlive() {
    this.#send({ type: "keepalive" });
    const owed = this.#tape.closed || this.#tape.endMs - this.#decodedMs > KEEPALIVE_MS;
    this.#unanswered = owed ? this.#unanswered + 1 : 0;
    if (this.#unanswered > PATIENCE) this.#socket.close();
  }

  #pause() {
    const delayMs = Math.min(FIRST_DELAY_MS * 2 ** this.#tries++, LONGEST_DELAY_MS) * (0.5 + Math.random() / 2);
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, delayMs);
    });
  }

  /** One connection to its end: resolves to nothing if all is said and told, else to what it was lost by. */
  #converse() {
    const { query, key, rate } = this.#options;
    const url = new URL("v1/stream", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = new URLSearchParams({ ...query, sample_rate: rate, words: true, progress: true, resumes: true, ...(key && { token: key }) });
    const socket = (this.#socket = new WebSocket(url));
    this.#decodedMs = this.#tape.baseMs;
    this.#owed = false;
    this.#againMs = this.#partialMs;
    this.#unanswered = 0;
    let closed, fault, opened = false;
    socket.onopen = () => {
      opened = this.#met = true;
      this.#next = this.#tape.first;
      this.#saidMs = this.#tape.baseMs;
      if (this.#bookmark) this.#send({ ...this.#bookmark, type: "resume" });
      this.#tell.state(this.#tape.closed ? "finishing" : "listening");
      this.#speak();
    };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      this.#unanswered = 0;
      if (message.type === "closed") closed = message;
      else if (message.type === "error" && message.fatal) fault = message;
      else this.#hear(message);
    };
    return new Promise((resolve) => {
      socket.onclose = ({ code, reason }) => {
        const transient = !HOPELESS.has(code);
        if (closed && this.#tape.closed && closed.audio_ms + CLOSED_SLACK_MS >= this.#tape.endMs) resolve();
        else if (!opened) resolve(refusal(key));
        else if (fault) resolve(new Lost(fault.message, { transient, code: fault.code }));
        else resolve(new Lost(`The connection was lost (${reason || `code ${code}`}).`, { transient }));
      };
    });
  }

  /** Says of the tape what the server can take now. */
  #speak() {
    while (this.#ready && this.#saidMs - this.#decodedMs <= MAX_AHEAD_MS) {
      this.#next = Math.max(this.#next, this.#tape.first);
      const entry = this.#tape.entry(this.#next);
      if (entry === undefined) return;
      this.#next++;
      if (entry === "close") return this.#send({ type: "close" });
      this.#socket.send(entry);
      this.#saidMs += (entry.length * 1000) / this.#tape.rate;
    }
  }

  /** What is before the bookmark is not needed any more. */
  #goOnFrom(bookmark) {
    this.#bookmark = bookmark;
    this.#tape.forget(bookmark.from_ms ?? bookmark.audio_ms);
  }

  #hear(message) {
    if (message.type === "bookmark") {
      this.#coming = message;
      return;
    }
    if (message.audio_ms !== undefined) {
      this.#decodedMs = Math.max(this.#decodedMs, message.audio_ms);
      if (message.type === "partial") this.#owed = message.text !== "";
      if (message.type === "final") this.#owed = false;
      const keptMs = this.#decodedMs - KEEP_MS;
      const finishedMs = this.#bookmark?.audio_ms ?? 0; // words of a final are before
      if (message.type === "final") {
        const known = this.#coming?.audio_ms === message.audio_ms;
        this.#goOnFrom(known ? this.#coming : { audio_ms: message.audio_ms });
      } else if (message.type === "progress" && !this.#owed && keptMs > finishedMs) {
        this.#goOnFrom({ audio_ms: keptMs });
      }
      if (this.#decodedMs > this.#furthestMs) [this.#furthestMs, this.#tries] = [this.#decodedMs, 0];
    }
    if (message.type === "partial" || message.type === "progress") {
      const sinceMs = performance.now() - this.#saidAt;
      if (!this.#tape.closed) this.#tell.behind(this.#tape.endMs - message.audio_ms + sinceMs);
    }
    if (message.type === "final") this.#tell.heard(message);
    if (message.type === "partial" && message.audio_ms > this.#againMs) {
      this.#partialMs = message.audio_ms;
      this.#tell.heard(message);
    }
    this.#speak();
  }
}
