"""Weak alignment: which word ends when, from the unmodified model's cross-attention.

The base model transcribes each clip (its own casing and punctuation), the reference overrules it word by
word, and teacher-forcing the result over the clip's features gives the word times. The features themselves are
kept beside the alignment: they are what the causal encoder is later distilled towards.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from asr.audio import SAMPLE_RATE, read_audio
from asr.checkpoint import Whisper
from asr.limits import SAMPLES_PER_FRAME
from asr.mel import HOP, LogMel
from asr.precision import for_training
from asr.search import GreedySearch, SearchState
from asr.timing import timed_words

WINDOW_SECONDS = 30  # Whisper decodes well only what is padded to its full window
TAIL_SECONDS = 2  # of silence behind a clip that is encoded and not decoded
MAX_TOKENS = 200
MIN_LOGPROB = -0.5  # mean over the tokens of a transcript that stands without a reference
ALIGNED, FEATURES = "aligned.jsonl", "features.f16"


@dataclass(frozen=True)
class AlignedClip:
    """One line of aligned.jsonl. `words` are (text, start s, end s); None where no transcript can be trusted."""

    id: str
    audio: str
    seconds: float
    words: list[tuple[str, float, float]] | None
    offset: int  # first row of the clip in features.f16, rows of d float16 values
    frames: int


def overrule(hypothesis: str, reference: str) -> str:
    """The reference's words in the hypothesis's casing and punctuation, word by word."""
    said, meant = hypothesis.split(), reference.split()
    if not said or not meant:
        return " ".join(map(_natural_case, meant))
    aligned = jiwer.process_words(
        [" ".join(map(_bare, meant)) or "-"], [" ".join(_bare(word) or "-" for word in said)]
    ).alignments[0]
    words: list[str] = []
    for chunk in aligned:
        span = range(chunk.ref_start_idx, chunk.ref_end_idx)
        if chunk.type == "equal":
            words += said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        elif chunk.type == "substitute":
            words += [_dressed(meant[i], said[chunk.hyp_start_idx + k]) for k, i in enumerate(span)]
        elif chunk.type == "delete":
            words += [_natural_case(meant[i]) for i in span]
    return " ".join(words)


def has_own_case(text: str) -> bool:
    """Whether a transcript is more than capitals, so that it needs no casing from a model."""
    return text != text.upper()


def _bare(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum() or c == "'")


def _natural_case(word: str) -> str:
    """LibriSpeech writes everything in capitals; only "I" keeps them."""
    lower = word.lower()
    return lower.capitalize() if lower == "i" or lower.startswith("i'") else lower


def _dressed(word: str, model: str) -> str:
    """`word` in the capitals and trailing punctuation of `model`."""
    natural = _natural_case(word)
    tail = model[len(model.rstrip('.,;:!?"')) :]
    return (natural.capitalize() if model[:1].isupper() else natural) + tail


class Aligner:
    """Transcribes and aligns batches of clips with the unmodified model."""

    def __init__(self, model: Whisper, batch: int = 16) -> None:
        self.model = model
        self.batch = batch
        self.mel = LogMel(model.device)
        vocabulary = model.vocabulary
        self.search = GreedySearch(
            model.decoder, vocabulary, suppress=tuple(vocabulary.tokenizer.non_speech_tokens)
        )
        self._state: SearchState = self.search.init_state(batch)

    @torch.no_grad()
    def __call__(self, clips: list[np.ndarray], texts: list[str | None]) -> list[tuple[Tensor, list | None]]:
        """Clips (n,) at 16 kHz, at most 30 s -> (features (T, d), words or None) each."""
        features = self.features(clips, WINDOW_SECONDS * SAMPLE_RATE)
        targets = [text if text and has_own_case(text) else None for text in texts]
        unknown = [i for i, target in enumerate(targets) if target is None]
        for i, said in zip(unknown, self._transcribe(features[unknown]), strict=True):
            reference = texts[i]
            targets[i] = overrule(said or "", reference) if reference else said
        results = []
        for clip, target, feature in zip(clips, targets, features, strict=True):
            n_frames, words = len(clip) // SAMPLES_PER_FRAME, None
            if target:
                tokens = self.model.vocabulary.tokenizer.encode(" " + " ".join(target.split()))
                timed = timed_words(
                    self.model, self.model.decoder.keys_values(feature[None]), tokens, n_frames
                )
                words = [(word.text, round(word.start, 2), round(word.end, 2)) for word in timed]
            results.append((feature[:n_frames], words))
        return results

    @torch.no_grad()
    def features(self, clips: list[np.ndarray], window: int) -> Tensor:
        """Clips (n,) padded to `window` samples -> (B, window / 320, d) with full context."""
        audio = torch.stack([pad(torch.from_numpy(clip), (0, window - len(clip))) for clip in clips])
        mel = torch.cat([self.mel.offline(a[None].to(self.model.device)) for a in audio])
        with for_training(self.model.device):
            return self.model.encoder(mel).float()

    def _transcribe(self, features: Tensor) -> list[str | None]:
        """(B, 1500, d) -> the base model's own words, None where it is not sure of them."""
        if not len(features):
            return []
        rows = torch.arange(len(features))
        self.search.reset(self._state, rows)
        hypotheses, _ = self.search.step(features, self._state, rows, MAX_TOKENS)
        return [
            self.model.vocabulary.text(list(said.tokens)).strip()
            if said.tokens and np.mean(said.logprobs) > MIN_LOGPROB
            else None
            for said in hypotheses
        ]


def align_manifest(
    manifest: Path,
    out: Path,
    model: Whisper,
    *,
    batch: int = 16,
    words_from: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Aligns every clip of a JSON-lines manifest into `out`; resumes where it stopped.

    Args:
        manifest: lines with `id`, `audio` (relative to the manifest), `text` (null where unknown).
        words_from: an alignment by another model. When a word was said does not depend on the model, so only the
            features are computed, of the clips that are in it, and without Whisper's padding: a third of the work.
        progress: called with (clips done, clips in all).

    Returns:
        The number of clips in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    clips = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
    (out / ALIGNED).touch()
    done = list(read_aligned(out / ALIGNED))
    known, offset = {clip.id for clip in done}, max((clip.offset + clip.frames for clip in done), default=0)
    todo = [clip for clip in clips if clip["id"] not in known]
    said: dict[str, AlignedClip] = {}
    if words_from is not None:
        said = {clip.id: clip for clip in read_aligned(words_from / ALIGNED)}
        clips = [clip for clip in clips if clip["id"] in said]
        todo = sorted((c for c in todo if c["id"] in said), key=lambda c: said[c["id"]].seconds)
    width = model.dims.n_audio_state
    aligner = Aligner(model, batch)
    with (out / FEATURES).open("ab") as features_file, (out / ALIGNED).open("a") as lines:
        features_file.truncate(offset * width * 2)  # what an interruption left behind the last whole line
        lines.truncate(len(_complete(out / ALIGNED)))
        for some in _batches(todo, batch):
            audio = [
                read_audio(manifest.parent / clip["audio"])[: WINDOW_SECONDS * SAMPLE_RATE] for clip in some
            ]
            if words_from is None:
                results = aligner(audio, [clip.get("text") for clip in some])
            else:
                results = _with_words(aligner, audio, [said[clip["id"]] for clip in some])
            for clip, samples, (features, words) in zip(some, audio, results, strict=True):
                features_file.write(features.half().cpu().numpy().tobytes())
                path = str((manifest.parent / clip["audio"]).resolve())
                entry = AlignedClip(
                    clip["id"], path, len(samples) / SAMPLE_RATE, words, offset, len(features)
                )
                offset += len(features)
                features_file.flush()
                lines.write(json.dumps(asdict(entry)) + "\n")
            lines.flush()
            done_now = len(known) + min(len(todo), todo.index(some[-1]) + 1)
            progress(done_now, len(clips))
    return len(clips)


def _with_words(
    aligner: Aligner, audio: list[np.ndarray], said: list[AlignedClip]
) -> list[tuple[Tensor, list | None]]:
    """What the aligner would return, with words that are known."""
    longest = max(map(len, audio)) + TAIL_SECONDS * SAMPLE_RATE
    window = min(longest // HOP // 2 * 2 * HOP, WINDOW_SECONDS * SAMPLE_RATE)
    features = aligner.features(audio, window)
    return [
        (f[: len(a) // SAMPLES_PER_FRAME], c.words) for f, a, c in zip(features, audio, said, strict=True)
    ]


def read_aligned(path: Path) -> Iterator[AlignedClip]:
    """The complete lines of aligned.jsonl; an interruption may have left half of one behind them."""
    for line in _complete(path).splitlines():
        entry = json.loads(line)
        words = entry["words"]
        yield AlignedClip(**{**entry, "words": words and [tuple(word) for word in words]})


def _complete(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def open_features(directory: Path, width: int) -> np.ndarray:
    """features.f16 as a read-only memory map (rows, d): FRAMES_PER_SECOND rows per second of audio."""
    return np.memmap(directory / FEATURES, dtype=np.float16, mode="r").reshape(-1, width)


def _batches(items: list, size: int) -> Iterable[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
