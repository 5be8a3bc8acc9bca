// The page itself: what is pressed, and what is seen. Sound is capture.js, the server conversation.js.

import { CaptureError, fromFile, fromMicrophone } from "./capture.js";
import { Conversation, Lost, offered } from "./conversation.js";
import { FORMATS } from "./formats.js";

const $ = (id) => document.getElementById(id);
const LAGS = 60; // chunks on the curve
const MEDIAN_OF = 1_000; // chunks at most
const LEAST_SCALE_MS = 1_000; // of the curve
const DOUBTFUL = 0.5; // confidence below which a word is marked, and below which it is marked gently
const UNSURE = 0.8;
const NEAR_END_PX = 120; // then the page follows the words
const STATES = {
  idle: "Ready",
  starting: "Starting",
  listening: "Listening",
  reconnecting: "Connection lost: trying again, what you say is kept",
  finishing: "Finishing the last words",
};

let finals = [];
let endMs = 0; // of the timeline: the microphone goes on from here
let saved = true; // or nobody would miss it
let lags = [];
let capture, conversation;

// -- what is pressed

$("speak").onclick = () => {
  const { state } = document.body.dataset;
  if (state === "idle") start((ended) => fromMicrophone(ended));
  else if (conversation && capture) stop();
  else conversation?.abandon();
};

$("file").onchange = async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same file can be chosen again
  if (file && clear()) await start((ended) => fromFile(file, ended)); // its times are the file's own
};

$("clear").onclick = clear;

for (const button of document.querySelectorAll("[data-format]")) {
  button.onclick = () => save(button.dataset.format);
}

$("settings").oninput = showSettings;

/** Listens, and converses about it until it is over. */
async function start(open) {
  if (document.body.dataset.state !== "idle") return;
  show("starting");
  notice("");
  lags = [];
  const key = $("key").value.trim();
  try {
    await offer(await offered(key));
    capture = await open((why) => stop(why));
    const query = {
      model: $("model").value,
      chunk_ms: $("chunk").value,
      ...(!$("delay").hidden && { delay_ms: $("delay").value }),
      pause_ms: $("pause").value,
      final_pass: $("second-pass").checked ? $("second-pass").value : "none",
    };
    const options = { query, key, rate: capture.rate, startMs: endMs };
    conversation = new Conversation(options, { heard, behind, state: show });
    const over = conversation.run();
    over.catch(() => {}); // it is awaited below
    await capture.start((samples) => {
      conversation.say(samples);
      showLevel(samples);
    });
    const awake = navigator.wakeLock?.request("screen").catch(() => null); // a phone that sleeps hears nothing
    await over.finally(async () => (await awake)?.release());
  } catch (error) {
    if (error.code === "bad_key") askForKey();
    const known = error instanceof Lost || error instanceof CaptureError;
    notice(known ? error.message : `Something is wrong with this page (${error.message}): reload it.`);
  }
  quiet();
  conversation?.abandon();
  endMs = conversation?.endMs ?? endMs;
  conversation = undefined;
  $("settled").textContent = $("open").textContent = "";
  show("idle");
}

/** No more sound; the words for it are still to come. */
function stop(why = "") {
  notice(why);
  quiet();
  conversation?.finish();
}

function quiet() {
  capture?.stop();
  capture = undefined;
  $("level").style.transform = "";
}

/** Begins a new transcript. False if the person would rather keep this one. */
function clear() {
  if (document.body.dataset.state !== "idle") return false;
  if (!saved && !confirm("Begin anew? The text on this page has not been saved.")) return false;
  finals = [];
  endMs = 0;
  saved = true;
  $("finals").replaceChildren();
  show("idle");
  return true;
}

function save(format) {
  const { write, type } = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(finals)], { type }));
  link.download = `transcript.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  saved = true;
}

// -- what is heard

function heard(message) {
  const follow = document.documentElement.scrollHeight - window.innerHeight - window.scrollY < NEAR_END_PX;
  if (message.type === "final") {
    finals.push(message);
    saved = false;
    $("finals").append(utterance(message));
    $("settled").textContent = $("open").textContent = "";
    show(document.body.dataset.state);
  } else {
    const open = [...message.text].slice(message.stable).join("").trimStart(); // the server counts code points
    $("settled").textContent = message.text.slice(0, message.text.length - open.length);
    $("open").textContent = open;
  }
  if (follow) window.scrollTo(0, document.documentElement.scrollHeight);
}

function utterance({ start_ms, text, words }) {
  const line = element("p", "utterance");
  const time = element("time", "", clock(start_ms));
  time.setAttribute("aria-hidden", "true"); // every word tells its own
  line.append(time, " ");
  if (!words.length) line.append(text);
  words.forEach((word, i) => {
    const { confidence } = word;
    const kind = confidence < DOUBTFUL ? "word doubtful" : confidence < UNSURE ? "word unsure" : "word";
    const span = element("span", kind, word.text);
    span.tabIndex = i || document.querySelector(".word") ? -1 : 0; // one stop of Tab for all: arrows do the rest
    const sure = `${Math.round(confidence * 100)} % sure`;
    span.dataset.tip = `${clock(word.start_ms, 2)} to ${clock(word.end_ms, 2)} · ${sure}`;
    line.append(i ? " " : "", span);
  });
  return line;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function clock(ms, digits = 0) {
  const seconds = digits ? (ms / 1000) % 60 : Math.floor(ms / 1000) % 60;
  const text = seconds.toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return `${Math.floor(ms / 60_000)}:${text}`;
}

// -- the times of words: one tip, for the word under the pointer or the focus

const tell = (word) => {
  const tip = $("tip");
  tip.textContent = word.dataset.tip;
  tip.hidden = false;
  const { left, top, width } = word.getBoundingClientRect();
  const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(left + width / 2 - tip.offsetWidth / 2, most))}px`;
  tip.style.top = `${Math.max(8, top - tip.offsetHeight - 6)}px`;
};
const hush = () => ($("tip").hidden = true);

$("finals").addEventListener("pointerover", ({ target }) => (target.dataset.tip ? tell(target) : hush()));
$("finals").addEventListener("pointerleave", hush);
$("finals").addEventListener("focusout", hush);
$("finals").addEventListener("focusin", ({ target }) => {
  document.querySelector(".word[tabindex='0']")?.setAttribute("tabindex", "-1");
  target.tabIndex = 0;
  target.setAttribute("aria-describedby", "tip");
  tell(target);
});
window.addEventListener("scroll", hush, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hush();
  const words = [...document.querySelectorAll(".word")];
  const at = words.indexOf(document.activeElement);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: words.length - 1 }[event.key];
  if (at < 0 || !words[to]) return;
  event.preventDefault();
  words[to].focus();
});

// -- how late, how loud

function behind(ms) {
  lags = [...lags, ms].slice(-MEDIAN_OF);
  const sorted = [...lags].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  $("lag-now").textContent = milliseconds(ms);
  $("lag-median").textContent = milliseconds(median);
  const shown = lags.slice(-LAGS);
  const scale = Math.max(LEAST_SCALE_MS, ...shown);
  const points = shown.map((each, i) => `${(i * 120) / (LAGS - 1)},${(27 - (26 * each) / scale).toFixed(1)}`);
  $("lag-line").setAttribute("points", points.join(" "));
}

const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

function showLevel(samples) {
  const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1);
  const decibels = 20 * Math.log10(peak / 32_768);
  $("level").style.transform = `scaleX(${Math.max(0, 1 + decibels / 60)})`;
}

// -- the state of the page

function show(state) {
  document.body.dataset.state = state;
  if ($("status").textContent !== STATES[state]) $("status").textContent = STATES[state];
  const idle = state === "idle";
  $("speak-label").textContent = { idle: "Speak", starting: "Starting" }[state] ?? (capture ? "Stop" : "Do not wait");
  $("settings").disabled = $("file").disabled = !idle;
  $("clear").disabled = !idle || !finals.length;
  $("hint").hidden = finals.length > 0 || !idle;
  for (const button of document.querySelectorAll("[data-format]")) button.disabled = !finals.length;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function askForKey() {
  $("key-row").hidden = false;
  $("key").focus();
}

/** Puts what the server offers into the settings, the first time. */
function offer(models) {
  if ($("model").length) return;
  for (const { id } of models) $("model").append(new Option(id));
  const [{ chunk_ms, delay_ms, pause_ms, final_pass }] = models;
  for (const [id, range] of Object.entries({ chunk: chunk_ms, delay: delay_ms, pause: pause_ms })) {
    if (range) Object.assign($(id), { min: range.least, max: range.most, step: range.step, value: range.default });
    else for (const part of document.querySelectorAll(`#${id}, [for=${id}], #${id}-help`)) part.hidden = true;
  }
  $("second-pass").checked = final_pass.default !== "none";
  if ($("second-pass").checked) $("second-pass").value = final_pass.default;
  showSettings();
}

function showSettings() {
  for (const id of ["chunk", "delay", "pause"]) $(`${id}-value`).textContent = `${$(id).value} ms`;
  $("chosen").textContent = `${$("model").value}, ${$("chunk").value} ms`;
}

try {
  offer(await offered(""));
} catch (error) {
  if (error.code === "bad_key") $("key-row").hidden = false;
  else notice(error.message);
}
show("idle");
