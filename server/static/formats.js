// Finals written down, exactly as streaming/transcript.py writes them: text, SRT, WebVTT, JSON.

// What a reader can follow, after the subtitle guidelines of broadcasters.
const LINE_CHARACTERS = 42;
const LINES = 2;
const SHORTEST_MS = 1_000;
const LONGEST_MS = 6_000;
const PAUSE_MS = 1_500; // longer ones are not bridged
const ENOUGH_MS = 2_000; // a cue that long may end with its sentence

const asText = (finals) => finals.map((final) => `${final.text}\n`).join("");

function asJson(finals) {
  const utterances = finals.map(({ start_ms, end_ms, text, words }) => ({ start_ms, end_ms, text, words }));
  return `${JSON.stringify({ text: finals.map((final) => final.text).join(" "), utterances }, null, 1)}\n`;
}

const asSrt = (finals) =>
  cues(finals)
    .map((cue, i) => `${i + 1}\n${clock(cue.start_ms, ",")} --> ${clock(cue.end_ms, ",")}\n${block(cue.lines)}`)
    .join("\n");

function asVtt(finals) {
  const blocks = cues(finals).map(
    (cue) => `${clock(cue.start_ms, ".")} --> ${clock(cue.end_ms, ".")}\n${escaped(block(cue.lines))}`,
  );
  return ["WEBVTT\n", ...blocks].join("\n");
}

export const FORMATS = {
  txt: { write: asText, type: "text/plain" },
  srt: { write: asSrt, type: "application/x-subrip" },
  vtt: { write: asVtt, type: "text/vtt" },
  json: { write: asJson, type: "application/json" },
};

/** Short pieces of the utterances, none overlapping the next, each long enough to be read where it can be. */
function cues(finals) {
  const all = finals.flatMap((final) => pieces(final.words.length ? final.words : [final]));
  return all.map((piece, i) => {
    const start_ms = piece[0].start_ms;
    const end_ms = Math.max(piece.at(-1).end_ms, start_ms + SHORTEST_MS);
    const next_ms = all[i + 1]?.[0].start_ms ?? Infinity;
    return { start_ms, end_ms: Math.min(end_ms, next_ms), lines: wrap(piece) };
  });
}

function pieces(words) {
  const all = [];
  for (const word of words) {
    if (all.length && !complete(all.at(-1), word)) all.at(-1).push(word);
    else all.push([word]);
  }
  return all;
}

function complete(piece, next) {
  const lengthMs = piece.at(-1).end_ms - piece[0].start_ms;
  return (
    next.end_ms - piece[0].start_ms > LONGEST_MS ||
    next.start_ms - piece.at(-1).end_ms > PAUSE_MS ||
    (/[.?!]$/.test(piece.at(-1).text) && lengthMs >= ENOUGH_MS) ||
    wrap([...piece, next]).length > LINES
  );
}

function wrap(words) {
  const lines = [];
  for (const word of words.map((each) => each.text).join(" ").split(/\s+/)) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && [...longer].length <= LINE_CHARACTERS) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

const block = (lines) => lines.map((line) => `${line}\n`).join("");

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function clock(ms, point) {
  const two = (n) => String(n).padStart(2, "0");
  const seconds = Math.floor(ms / 1000);
  const fraction = String(ms % 1000).padStart(3, "0");
  return `${two(Math.floor(seconds / 3600))}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}${point}${fraction}`;
}
