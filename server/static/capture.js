// Where sound comes from: the microphone, or a file that is played through. Frames are mono Int16Arrays.

const RATE = 16_000; // Hz, what the model hears: the browser resamples
const MOST_RATE = 192_000; // Hz, what the server takes
const TAIL_MS = 200; // of silence behind a file, so that its last frame is whole

/** What went wrong, in words for the person at the page. */
export class CaptureError extends Error {}

/** Listens to the microphone. Resolves to { rate, start(hear), stop() }. */
export async function fromMicrophone(ended) {
  needSecurePage();
  const stream = await navigator.mediaDevices
    .getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: true } })
    .catch((error) => {
      throw new CaptureError(MICROPHONE[error.name] ?? `The microphone cannot be used (${error.message}).`);
    });
  const stopTracks = () => stream.getTracks().forEach((track) => track.stop());
  try {
    const [context, source] = await joined((each) => each.createMediaStreamSource(stream));
    stream.getAudioTracks()[0].onended = () => ended("The microphone was taken away.");
    return await opened(context, source, { stopSource: stopTracks });
  } catch (error) {
    stopTracks();
    throw error;
  }
}

/** Plays a file aloud and listens to it, like fromMicrophone; `ended()` is called at its end. */
export async function fromFile(file, ended) {
  needSecurePage();
  const url = URL.createObjectURL(file);
  const player = new Audio(url);
  let tail;
  const stopSource = () => {
    clearTimeout(tail);
    player.pause();
    URL.revokeObjectURL(url);
  };
  try {
    await playable(player, file.name);
    const [context, source] = await joined((each) => each.createMediaElementSource(player));
    source.connect(context.destination);
    player.onended = () => (tail = setTimeout(ended, TAIL_MS));
    return await opened(context, source, { play: () => player.play(), stopSource });
  } catch (error) {
    stopSource();
    throw error;
  }
}

const MICROPHONE = {
  NotAllowedError: "The microphone is not allowed: allow it beside the page's address, then press Speak again.",
  NotFoundError: "No microphone was found: connect one and press Speak again, or play a file.",
  NotReadableError: "Another program holds the microphone: close it and press Speak again.",
};

function needSecurePage() {
  if (!window.isSecureContext || !navigator.mediaDevices || !window.AudioWorklet) {
    throw new CaptureError("Browsers give sound only to secure pages: open this one as https:// or on localhost.");
  }
}

/** A context at 16 kHz and its source; at the device's own rate where (Firefox) the two must be the same. */
async function joined(join) {
  for (const options of [{ sampleRate: RATE }, {}]) {
    const context = new AudioContext(options);
    try {
      if (context.sampleRate <= MOST_RATE) return [context, join(context)];
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
    }
    await context.close();
  }
  throw new CaptureError("This browser cannot listen to the microphone at its sample rate: choose 48 kHz for it.");
}

function playable(player, name) {
  return new Promise((resolve, reject) => {
    player.oncanplay = resolve;
    player.onerror = () =>
      reject(new CaptureError(`${name} cannot be played: choose an audio file, such as WAV or MP3.`));
  });
}

async function opened(context, source, { play = async () => {}, stopSource }) {
  await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
  const frames = new AudioWorkletNode(context, "frames", { channelCount: 1, channelCountMode: "explicit" });
  source.connect(frames).connect(context.destination); // its own output is silence, but somebody must ask for it
  await context.resume();
  return {
    rate: context.sampleRate,
    async start(hear) {
      await play();
      frames.port.onmessage = ({ data }) => hear(data);
    },
    stop() {
      frames.port.onmessage = null;
      stopSource();
      if (context.state !== "closed") context.close();
    },
  };
}
