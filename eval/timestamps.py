"""How exact word times are: single spoken words, spliced at known places, and recognised.

    python -m eval.timestamps digits.jsonl --out runs/timestamps --final-pass none

The manifest's clips hold one word each (the Free Spoken Digit Dataset, say). Where a word begins and ends in
its own clip is found by loudness, in a clip that holds nothing else; in the spliced audio the recogniser has to
find it among its neighbours. Options that are not named here go to `asr-stream eval`, which does the recognising.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.audio import SAMPLE_RATE, AudioError, Samples, read_audio
from asr.timing import HOPS_PER_SECOND, loudness, noise_floor
from eval.datasets import DatasetError, TimedWord, Utterance, load
from eval.report import json_line, write_atomically, write_json
from eval.run import Recogniser, recognise
from eval.trace import Trace
from eval.wer import matching_words, word_key
from streaming.events import Word
from streaming.session import SessionOptions

WITHIN_MS = 200
PAUSE_S = (0.1, 0.8)  # between two clips, at random; a recogniser may end an utterance in the longer ones
SILENCE_S = 0.5  # around a piece
PEAK = 0.5  # of a piece, full scale is 1
ROOM = 3e-4  # standard deviation of the noise under a piece, so that its pauses are no digital silence
CLOSURE_HOPS = 15  # a word may be silent so long before its "t" or "k" bursts; what is further off is a click
UNDER_PEAK_DB = (40.0, 25.0)  # a word ends where it is at most, and at least, this much below its peak
OVER_FLOOR_DB = 8.0


@dataclass(frozen=True)
class Piece:
    """Audio of known words at known times."""

    id: str
    speaker: str
    samples: Samples
    words: tuple[TimedWord, ...]


@dataclass(frozen=True)
class TimeError:
    """Of one recognised word: what was said about it, minus what is true."""

    start_ms: float
    end_ms: float

    @property
    def close(self) -> bool:
        return max(abs(self.start_ms), abs(self.end_ms)) <= WITHIN_MS


def speech_span(samples: Samples) -> tuple[float, float]:
    """Where the one word in `samples` (n,) begins and ends, in seconds.

    A word is the loudest stretch above a threshold that lies 8 dB over the quietest tenth of the clip, but
    25 to 40 dB below its peak: clips are cut so closely that some hold no silence at all.
    """
    level = loudness(samples)
    peak = float(level.max(initial=-np.inf))
    low, high = (peak - under for under in UNDER_PEAK_DB)
    threshold = min(max(noise_floor(level) + OVER_FLOOR_DB, low), high)
    loud = np.flatnonzero(level > threshold)
    stretches = np.split(loud, np.flatnonzero(np.diff(loud) > CLOSURE_HOPS) + 1)
    word = max(stretches, key=lambda hops: float(np.sum(10 ** (level[hops] / 10))))
    return word[0] / HOPS_PER_SECOND, (word[-1] + 1) / HOPS_PER_SECOND


def splice(
    utterances: Sequence[Utterance], *, n_pieces: int = 24, n_words: int = 8, seed: int = 0
) -> list[Piece]:
    """Pieces of up to `n_words` clips of one speaker each, speakers in turn, no clip twice; the same for a seed.

    Raises DatasetError where a clip has no text of one word or there are none, AudioError where one cannot be read.
    """
    speakers: dict[str, list[Utterance]] = {}
    for one in utterances:
        if one.text is None or len(one.text.split()) != 1:
            raise DatasetError(f"{one.id}: clips of one word are spliced, and its text is {one.text!r}")
        speakers.setdefault(one.speaker or "unknown", []).append(one)
    generator = np.random.default_rng(seed)
    queues = {speaker: list(generator.permutation(len(clips))) for speaker, clips in speakers.items()}
    pieces: list[Piece] = []
    while len(pieces) < n_pieces and any(queues.values()):
        for speaker, queue in queues.items():
            if queue and len(pieces) < n_pieces:
                clips = [speakers[speaker][i] for i in queue[:n_words]]
                del queue[:n_words]
                pieces.append(_join(f"piece-{len(pieces):03}", speaker, clips, generator))
    return pieces


def _join(name: str, speaker: str, clips: Sequence[Utterance], generator: np.random.Generator) -> Piece:
    parts, words = [np.zeros(int(SILENCE_S * SAMPLE_RATE), np.float32)], []
    for clip in clips:
        samples, at = read_audio(clip.audio), sum(map(len, parts)) / SAMPLE_RATE
        if len(samples) < SAMPLE_RATE // HOPS_PER_SECOND or not samples.any():
            raise AudioError(f"{clip.audio}: there is no word in it")
        start_s, end_s = speech_span(samples)
        words.append(TimedWord(clip.text or "", round(at + start_s, 4), round(at + end_s, 4)))
        pause_s = SILENCE_S if clip is clips[-1] else generator.uniform(*PAUSE_S)
        parts += [samples, np.zeros(int(pause_s * SAMPLE_RATE), np.float32)]
    joined = np.concatenate(parts)
    joined *= PEAK / np.abs(joined).max()
    joined += ROOM * generator.standard_normal(len(joined), dtype=np.float32)
    return Piece(name, speaker, joined, tuple(words))


def time_errors(reference: Sequence[TimedWord], said: Sequence[Word]) -> list[TimeError]:
    """The errors of the words that were recognised; words whose start is not known are left out."""
    pairs = matching_words(
        [word_key(word.word) for word in reference], [word_key(word.text) for word in said]
    )
    return [
        TimeError(said[j].start_ms - start_s * 1_000, said[j].end_ms - reference[i].end_s * 1_000)
        for i, j in pairs
        if (start_s := reference[i].start_s) is not None
    ]


def summarize(recognised: Iterable[tuple[Sequence[TimedWord], Trace]]) -> dict[str, Any] | None:
    """`timestamps` of report.json; None where no word with a known start was recognised.

    Errors are of the words of finals. Besides the means of the absolute errors: `within_200_ms`, the part of
    words with both edges so close; `*_bias_ms`, the medians of the errors with their sign, positive where late.
    """
    errors, n_reference = [], 0
    for reference, trace in recognised:
        errors += time_errors(reference, [word for final in trace.finals for word in final.words])
        n_reference += sum(word.start_s is not None for word in reference)
    if not errors:
        return None
    starts = np.array([error.start_ms for error in errors])
    ends = np.array([error.end_ms for error in errors])
    return {
        "start_mae_ms": round(float(np.abs(starts).mean()), 1),
        "end_mae_ms": round(float(np.abs(ends).mean()), 1),
        "within_200_ms": round(sum(error.close for error in errors) / len(errors), 4),
        "start_bias_ms": round(float(np.median(starts)), 1),
        "end_bias_ms": round(float(np.median(ends)), 1),
        "words": len(errors),
        "unrecognised": n_reference - len(errors),
    }


def measure(
    engine: Recogniser,
    pieces: Sequence[Piece],
    options: SessionOptions,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any] | None:
    """Recognises the pieces one after the other; the numbers of `summarize`.

    engine: one that does its second pass inside `step` (final_pass_thread=False).
    progress: told (pieces done, of how many).
    """
    recognised = []
    for i, piece in enumerate(pieces):
        progress(i, len(pieces))
        recognised.append((piece.words, recognise(engine, piece.id, piece.samples, options)))
    progress(len(pieces), len(pieces))
    return summarize(recognised)


def write_pieces(pieces: Sequence[Piece], folder: Path) -> Path:
    """Writes audio and a manifest that `asr-stream eval` reads, with the words' times; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for piece in pieces:
        soundfile.write(folder / f"{piece.id}.flac", piece.samples, SAMPLE_RATE)
        lines.append(
            {
                "id": piece.id,
                "audio": f"{piece.id}.flac",
                "speaker": piece.speaker,
                "text": " ".join(word.word for word in piece.words),
                "words": [[word.word, word.start_s, word.end_s] for word in piece.words],
            }
        )
    manifest = folder / "manifest.jsonl"
    write_atomically(manifest, "".join(map(json_line, lines)))
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.timestamps`; the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.timestamps",
        description="Measure how exact word times are, on spliced words. "
        "Further options (--model, --chunk-ms, --final-pass, ...) are those of `asr-stream eval`.",
    )
    parser.add_argument("manifest", type=Path, help="JSON lines: clips of one spoken word each")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the report; an interrupted run goes on"
    )
    parser.add_argument("--pieces", type=int, default=24, help="pieces to splice (%(default)s)")
    parser.add_argument("--words", type=int, default=8, help="words in each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given, options = parser.parse_known_args(arguments)
    if min(given.pieces, given.words) < 1:
        parser.error("--pieces and --words are at least 1")
    try:
        pieces = splice(load(given.manifest), n_pieces=given.pieces, n_words=given.words, seed=given.seed)
    except (DatasetError, AudioError) as error:
        parser.error(str(error))
    manifest = write_pieces(pieces, given.out / "pieces")
    # A room does not know the front door, where engines are built: the command is what it offers.
    command = [sys.executable, "-m", "asr_stream", "eval", str(manifest), "--out", str(given.out), *options]
    if code := subprocess.run(command, check=False).returncode:
        return code
    try:
        found = add_to_report(given.out, pieces)
    except DatasetError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=1))
    return 0


def add_to_report(out: Path, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Computes `timestamps` from the run in the folder `out` and puts it into its report.json.

    Raises DatasetError where it holds a sweep.
    """
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    if "sweep" in report:
        raise DatasetError(f"{out} holds a sweep: measure one setting at a time")
    rows = [json.loads(line) for line in (out / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    traces = {trace.utterance_id: trace for trace in map(Trace.from_json, rows)}
    found = summarize((piece.words, traces[piece.id]) for piece in pieces)
    report |= {} if found is None else {"timestamps": found}
    write_json(out / "report.json", report)
    return found


if __name__ == "__main__":
    sys.exit(main())
