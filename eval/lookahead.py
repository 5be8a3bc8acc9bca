"""What waiting is worth: error rate against true latency of transducers under schedules and controls.

Every clip is heard whole; under hard masks that equals the stream (asr/transducer/executor.py), latency included. A
policy gives the spans: "adaptive" leaves them to the schedulers; "shuffled" takes what the schedulers said of a clip
and permutes it in time, layer by layer: the same spans, no longer where they were asked for; "causal", "layerwise:"
and "chunked:" are as in asr/transducer/schedule.py.

Latency is from a frame's own end until its features are final: what all its dependencies wait for
(`schedule.completion`) and the front end's window; compute comes on top. Frames are 40 ms.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr.audio import SAMPLE_RATE, Samples, read_audio
from asr.mel import LogMel
from asr.transducer.model import Transducer
from asr.transducer.schedule import Policy, named
from asr.transducer.search import TransducerSearch
from asr.transducer.trunk import FEATURE_MS, FRONT_END_MS, SAMPLES_PER_FEATURE
from eval.datasets import DatasetError, Utterance
from eval.latency import summary
from eval.log import fingerprint
from eval.report import write_json
from eval.run import EvaluationError
from eval.wer import Edits, bootstrap_interval, count_edits, pooled

ADAPTIVE, SHUFFLED = "adaptive", "shuffled"
REPORT = "lookahead.json"
TRAILING_S = 0.4  # of silence behind each clip, as in training: the last word needs a moment to be said
LONGEST_S = 29.0  # that a trunk hears at once
BATCH_S = 120.0

Row = dict[str, Any]
#: Told (seconds of audio done, in all, of what).
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Head:
    """A transducer to be measured."""

    name: str
    weights: str  # tells them from others of the same name
    facts: Mapping[str, Any]  # from its head.json: policy, target_ms, hours, ...
    load: Callable[[], Transducer]

    def policies(self) -> list[str]:
        """What it was trained for, and what proves or refutes that."""
        own = str(self.facts.get("policy", ADAPTIVE))
        return [own, SHUFFLED] if own == ADAPTIVE else [own]


@dataclass
class Tally:
    """What one head did under one policy, clip by clip."""

    edits: dict[str, Edits] = field(default_factory=dict)  # by the clip's id
    latency_ms: list[float] = field(default_factory=list)  # of all frames
    emitting_ms: list[float] = field(default_factory=list)  # of those at which something was said
    spans: list[list[int]] = field(default_factory=list)  # layer, span: frames

    def add(self, done: Tensor, spans: Tensor, most: int, said_at: set[int]) -> None:
        """Counts in one clip: done (T,), spans (L, T) of at most `most`, and the frames that said something."""
        latency = (FRONT_END_MS + FEATURE_MS * (done - torch.arange(len(done)))).tolist()
        self.latency_ms += latency
        self.emitting_ms += [latency[frame] for frame in sorted(said_at)]
        counts = torch.stack([layer.bincount(minlength=most + 1) for layer in spans])
        self.spans = (counts + torch.tensor(self.spans)).tolist() if self.spans else counts.tolist()

    def row(self, order: Sequence[str]) -> Row:
        """Stable keys; clips in `order`."""
        edits = [self.edits[clip] for clip in order]
        total, interval = pooled(edits), bootstrap_interval(edits)
        widths = range(len(self.spans[0]))
        return {
            "wer": total.rate,
            "wer_ci": list(interval) if interval else None,
            "substitutions": total.substitutions,
            "deletions": total.deletions,
            "insertions": total.insertions,
            "reference_words": total.reference_words,
            "latency_ms": summary(self.latency_ms),
            "emitting_latency_ms": summary(self.emitting_ms),
            "mean_span": [float(np.average(widths, weights=layer)) for layer in self.spans],
            "spans": self.spans,
            "clips": [[one.errors, one.reference_words] for one in edits],
        }


def measure(
    heads: Sequence[Head],
    utterances: Sequence[Utterance],
    out: Path,
    *,
    policies: Sequence[str] = (),
    seed: int = 0,
    batch_s: float = BATCH_S,
    progress: Progress = lambda done, total, note: None,
) -> Row:
    """Hears all clips with every head under every policy, and keeps OUT/lookahead.json; what is there is not redone.

    Args:
        policies: for every head; none: what each was trained for, and its schedule shuffled if it has one.
        seed: of the shuffling.

    Returns:
        The report, as it is in the file.

    Raises:
        DatasetError: a clip without transcript, or none that is short enough.
        EvaluationError: OUT holds a report on something else.
        ValueError: no such policy.
    """
    for one in utterances:
        if one.text is None:
            raise DatasetError(f"{one.id} has no transcript: a word error rate needs one for every clip")
    for policy in policies:
        if policy != SHUFFLED and not policy.startswith("layerwise:"):  # these depend on the model
            named(policy, 1)
    out.mkdir(parents=True, exist_ok=True)
    clips = {one.id: read_audio(one.audio) for one in utterances}
    heard = [one for one in utterances if len(clips[one.id]) <= LONGEST_S * SAMPLE_RATE]
    if not heard:
        raise DatasetError(
            f"all clips are longer than {LONGEST_S:.0f} s, which is what a trunk hears at once"
        )
    header: Row = {
        "report": "lookahead",
        "data": _fingerprint(heard),
        "seed": seed,
        "clips": len(heard),
        "left_out": len(utterances) - len(heard),
        "audio_seconds": round(sum(len(clips[one.id]) for one in heard) / SAMPLE_RATE, 3),
        "trailing_silence_s": TRAILING_S,
    }
    rows = _known(out / REPORT, header)
    for number, head in enumerate(heads):
        wanted = list(dict.fromkeys(policies or head.policies()))
        missing = [name for name in wanted if rows.get((head.name, name), {}).get("weights") != head.weights]
        if missing:
            done, note = number * header["audio_seconds"], Path(head.name).name

            def after_batch(seconds: float, done: float = done, note: str = note) -> None:
                progress(done + seconds, len(heads) * header["audio_seconds"], note)

            tallies = _hear(head.load(), heard, clips, missing, seed, batch_s, after_batch)
            about = {"model": head.name, "weights": head.weights, "facts": dict(head.facts)}
            for policy, tally in tallies.items():
                row = tally.row([one.id for one in heard])
                rows[head.name, policy] = {**about, "policy": policy, **row}
        write_json(out / REPORT, {**header, "rows": list(rows.values())})
    return {**header, "rows": list(rows.values())}


def shuffled(spans: Tensor, lengths: Tensor, clips: Sequence[str], seed: int) -> Tensor:
    """(L, B, T) spans, permuted in time within each clip, each layer on its own; what lies beyond a clip stays."""
    permuted = spans.clone()
    for row, (clip, n) in enumerate(zip(clips, lengths.tolist(), strict=True)):
        for layer in range(len(spans)):
            rng = np.random.default_rng((seed, zlib.crc32(clip.encode()), layer))
            permuted[layer, row, :n] = spans[layer, row, torch.from_numpy(rng.permutation(n))]
    return permuted


def _hear(
    model: Transducer,
    utterances: Sequence[Utterance],
    clips: Mapping[str, Samples],
    policies: Sequence[str],
    seed: int,
    batch_s: float,
    progress: Callable[[float], None],
) -> dict[str, Tally]:
    """What a model makes of all clips under each policy; the trunk hears them once."""
    controls = {name: named(name, model.dims.layers) for name in policies if name != SHUFFLED}
    tallies = {policy: Tally() for policy in policies}
    search = model.search()
    mel, heard_s = LogMel(model.device), 0.0
    for batch in _batches(utterances, clips, batch_s):
        ids = [one.id for one in batch]
        samples, lengths = _padded([clips[clip] for clip in ids])
        with torch.no_grad():
            features = model.trunk(mel.whole(samples.to(model.device)))[:, : int(lengths.max())]
            for policy, tally in tallies.items():
                control = controls.get(policy)
                if policy == SHUFFLED:
                    control = _shuffling(model, features, lengths, ids, seed)
                texts = _say(model, search, features, lengths, control, tally)
                for one, text in zip(batch, texts, strict=True):
                    tally.edits[one.id] = count_edits(one.text or "", text)
        heard_s += sum(len(clips[clip]) for clip in ids) / SAMPLE_RATE
        progress(heard_s)
    return tallies


def _say(
    model: Transducer,
    search: TransducerSearch,
    features: Tensor,
    lengths: Tensor,
    policy: Policy | None,
    tally: Tally,
) -> list[str]:
    """What a batch says under a policy, greedily; counts in how long that took."""
    frames, schedule = model.encoder(features, lengths, policy)
    state = search.init_state(len(lengths))
    search.step(frames, lengths, schedule.done, state, torch.arange(len(lengths)))
    hypotheses = [row.hypothesis() for row in state.rows]
    spans = _within(torch.stack(schedule.spans), lengths)
    for row, (n, hypothesis) in enumerate(zip(lengths.tolist(), hypotheses, strict=True)):
        done = schedule.done[row, :n].cpu()
        tally.add(done, spans[:, row, :n], model.dims.span, set(hypothesis.at))
    return [model.pieces.text(list(hypothesis.tokens)) for hypothesis in hypotheses]


def _shuffling(
    model: Transducer, features: Tensor, lengths: Tensor, clips: Sequence[str], seed: int
) -> Policy:
    """What the schedulers say of a batch, permuted in time."""
    _, schedule = model.encoder(features, lengths)
    spans = shuffled(_within(torch.stack(schedule.spans), lengths), lengths, clips, seed)
    return lambda layer, batch, n_frames, span: spans[layer]


def _within(spans: Tensor, lengths: Tensor) -> Tensor:
    """(L, B, T) spans that end with their clips."""
    left = lengths[:, None] - 1 - torch.arange(spans.shape[2])
    return torch.minimum(spans.cpu(), left.clamp(min=0))


def _batches(
    utterances: Sequence[Utterance], clips: Mapping[str, Samples], batch_s: float
) -> Iterator[list[Utterance]]:
    """Of similar lengths, `batch_s` with padding, or one clip."""
    batch: list[Utterance] = []
    for one in sorted(utterances, key=lambda one: len(clips[one.id])):
        if batch and len(clips[one.id]) * (len(batch) + 1) > batch_s * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _padded(clips: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """(B, n) samples with silence behind them, a feature more than the (B,) that count: the front end looks ahead."""
    n_trailing = round(TRAILING_S * SAMPLE_RATE)
    lengths = torch.tensor([-(-(len(clip) + n_trailing) // SAMPLES_PER_FEATURE) for clip in clips])
    samples = torch.zeros(len(clips), (int(lengths.max()) + 1) * SAMPLES_PER_FEATURE)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return samples, lengths


def _fingerprint(utterances: Sequence[Utterance]) -> str:
    """Tells these clips and texts from others."""
    rows = [[one.id, one.text, fingerprint(one.audio)] for one in utterances]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _known(path: Path, header: Row) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run by model and policy."""
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text())
        rows = {(row["model"], row["policy"]): row for row in report["rows"]}
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: not what this measurement wrote: {error}") from error
    if {key: report.get(key) for key in header} != header:
        raise EvaluationError(f"{path} is about other clips or another seed: choose another --out")
    return rows
