"""Word times from cross-attention and loudness, and word confidences from token probabilities.

The alignment heads' attention is normalised as openai-whisper does (softmax over audio, standard scores over
tokens, median filter), then one monotone path through tokens x frames gives each token its stretch of audio.
Attention knows which pause is meant; where in the audio it begins and ends, the loudness knows better.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.audio import SAMPLE_RATE
from asr.checkpoint import Vocabulary, Whisper
from asr.device import upload
from asr.limits import SAMPLES_PER_FRAME
from asr.weights import Dims

MEDIAN_WIDTH = 7  # frames
HOPS_PER_SECOND = 100
HOP = SAMPLE_RATE // HOPS_PER_SECOND  # samples between two values of the loudness, 10 ms
HOPS_PER_FRAME = SAMPLES_PER_FRAME // HOP
WINDOW = 25 * HOP // 10  # samples that a value is taken over, 25 ms
PRE_EMPHASIS = 0.97  # lets an "s" count as much as a vowel
SILENCE_DB = -100.0  # of digital zeros, which say nothing about the room
OVER_FLOOR_DB = 8.0  # speech is this much louder than the room ...
UNDER_PEAK_DB = (40.0, 15.0)  # ... and at most, and at least, this much below the peaks of the words
REACH = 15  # hops: how far a word may grow, 150 ms
SHORTEST_PAUSE = 6  # hops: a shorter silence beside a boundary is the closure of a "t" or "k", 60 ms

MOST_CERTAIN = 5e-5  # probabilities nearer to 0 or 1 count as this near: events carry four digits

Levels = NDArray[np.float32]


@dataclass(frozen=True)
class TimedWord:
    """`text` without surrounding space; times in seconds from the start of the audio."""

    text: str
    start: float
    end: float
    confidence: float  # geometric mean of the probabilities of its spoken tokens, calibrated
    n_tokens: int


@dataclass(frozen=True)
class Calibration:
    """A probability that the model gives -> one that may be believed: a straight line through the log-odds."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, probability: float) -> float:
        return 1 / (1 + math.exp(-self.slope * log_odds(probability) - self.offset))


RAW = Calibration()
#: (model, final_pass) -> constants; "none" is the causal model with its adapter. Each line is what
#: `python -m eval.calibration fit` prints for a run over training data; a new adapter needs new ones.
#: The stream of tiny.en has none: its probabilities are 2 to 3 % off as they are (ECE, two sets), constants fitted on
#: either set make it worse on the other, and on training clips the adapter is hardly ever wrong.
CALIBRATIONS: dict[tuple[str, str], Calibration] = {
    ("tiny.en", "full"): Calibration(slope=0.8861, offset=0.8489),  # 110 training clips, 5 % of words wrong
}
_SIZES = {384: "tiny", 512: "base", 768: "small", 1024: "medium"}  # by width


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), finite for 0 and 1."""
    p = min(max(probability, MOST_CERTAIN), 1 - MOST_CERTAIN)
    return math.log(p / (1 - p))


def calibration(dims: Dims, final_pass: str) -> Calibration:
    """The constants for a model of these dimensions that decodes with `final_pass` (full | none); RAW if unknown."""
    name = _SIZES.get(dims.n_text_state, "") + (".en" if dims.n_vocab < 51_865 else "")
    return CALIBRATIONS.get((name, final_pass), RAW)


def token_frames(scores: Tensor, n_frames: int) -> tuple[list[int], list[int]]:
    """Where in the audio each token lies.

    Args:
        scores: (heads, u, T) attention scores; row i belongs to the position that *predicts* token i.
        n_frames: frames of real audio, at most T.

    Returns:
        u first frames, and u frames behind the last one, of the tokens.
    """
    weights = scores[:, :, :n_frames].float().softmax(dim=-1)
    weights = weights - weights.mean(dim=-2, keepdim=True)
    # torch's own std takes ten times as long over rows.
    weights = weights / (weights.square().mean(dim=-2, keepdim=True).sqrt() + 1e-9)
    half = MEDIAN_WIDTH // 2
    if n_frames > half:
        padded = torch.nn.functional.pad(weights, (half, half), mode="reflect")
        windows = padded.unfold(-1, MEDIAN_WIDTH, 1)
        weights = torch.stack([_medians(head) for head in windows])  # one head stays in a core's cache
    return monotone_path(weights.mean(dim=0))


def _medians(windows: Tensor) -> Tensor:
    """(..., n) -> (...), n odd and small: exchanges over everything at once take a tenth of torch's own time."""
    columns, middle = list(windows.unbind(-1)), windows.shape[-1] // 2
    for end in range(len(columns) - 1, middle - 1, -1):  # the largest so far goes to `end`
        for i in range(end):
            a, b = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = torch.minimum(a, b), torch.maximum(a, b)
    return columns[middle]


def monotone_path(gain: Tensor) -> tuple[list[int], list[int]]:
    """The best division of frames among tokens in order; a token may share its frame with the next.

    Dynamic time warping with steps (0, 1), (1, 1), (1, 0) over gain (u, T).

    Returns:
        u first frames, and u frames behind the last one, of the tokens.
    """
    u, n_frames = gain.shape
    cost = (-gain).cpu().double().numpy()
    total = np.full((u + 1, n_frames + 1), np.inf)
    total[0, 0] = 0
    # A row at once: stepping on through it from the best place to enter is a running minimum over running sums.
    for i in range(1, u + 1):
        entered = np.minimum(total[i - 1, :-1], total[i - 1, 1:])
        sums = np.cumsum(cost[i - 1])
        total[i, 1:] = sums + np.minimum.accumulate(entered - (sums - cost[i - 1]))
    first, behind = [0] * u, [0] * u
    token, frame = u, n_frames
    while token > 0 and frame > 0:
        first[token - 1] = frame - 1
        behind[token - 1] = max(behind[token - 1], frame)
        moves = (total[token - 1, frame - 1], total[token, frame - 1], total[token - 1, frame])
        move = moves.index(min(moves))
        token, frame = token - (move != 1), frame - (move != 2)
    return first, behind


def n_spoken(tokens: list[int], vocabulary: Vocabulary) -> int:
    """How many tokens of a word are spoken: all but the punctuation behind it, at least one."""
    n = len(tokens)
    while n > 1 and not any(c.isalnum() for c in vocabulary.tokenizer.decode(tokens[n - 1 : n])):
        n -= 1
    return n


def loudness(samples: Tensor | NDArray[np.float32]) -> Levels:
    """(n,) samples of 16 kHz -> (n // HOP,) dB of full scale, pre-emphasised; value i lies at (i + 1/2) HOP."""
    x = np.asarray(samples, np.float64)
    n = len(x) // HOP
    if not n:
        return np.empty(0, np.float32)
    emphasised = np.append(x[0], x[1:] - PRE_EMPHASIS * x[:-1])
    energy = np.cumsum(np.pad(emphasised**2, ((WINDOW - HOP) // 2 + 1, WINDOW)))
    first = np.arange(n) * HOP
    power = (energy[first + WINDOW] - energy[first]) / WINDOW
    levels: Levels = (10 * np.log10(power.clip(10 ** (SILENCE_DB / 10)))).astype(np.float32)
    return levels


def noise_floor(level: Levels) -> float:
    """The loudness of the room in dB: what 90 % of the audio exceeds."""
    heard = level[level > SILENCE_DB]
    return float(np.percentile(heard, 10)) if len(heard) else SILENCE_DB


def quiet_below(floor: float, peak: float) -> float:
    """The loudness in dB that divides pauses from a word whose peak is `peak`, in a room of `floor`."""
    low, high = (peak - under for under in UNDER_PEAK_DB)
    return min(max(floor + OVER_FLOOR_DB, low), high)


def refine(spans: list[tuple[int, int]], level: Levels) -> list[tuple[int, int]]:
    """Moves the edges of words to where the pauses beside them begin and end.

    Attention often leaves a pause, or half of it, to one of its words: silence is taken from a word's edges
    whatever its length, but sound is given to a word within REACH only.

    Args:
        spans: first hop, and hop behind the last, of each word in order; neighbours may touch.
        level: `loudness` of the audio.

    Returns:
        Spans in order, none empty, each sharing a hop with what it was; words without a pause between them
        stay as they are.
    """
    n = max([len(level), *(behind for _, behind in spans)])
    level = np.pad(level, (0, n - len(level)), constant_values=SILENCE_DB)
    floor, peaks = noise_floor(level), [float(level[first:behind].max()) for first, behind in spans]
    starts, ends = [first for first, _ in spans], [behind for _, behind in spans]
    for i in range(len(spans) + 1):
        before, after = spans[i - 1] if i else None, spans[i] if i < len(spans) else None
        loud = level >= quiet_below(floor, min(peaks[max(0, i - 1) : i + 1]))
        low, high = 0, n
        earliest = (before[1] if before else spans[0][0]) - REACH
        latest = (after[0] if after else spans[-1][1]) + REACH
        if before:  # keeps its first sound; its loudest may be the onset of the word behind the pause
            first = max(starts[i - 1], before[0])
            low = first + int(np.argmax(loud[first : before[1]])) + 1
        if after:  # keeps its last sound
            high = after[1] - 1 - int(np.argmax(loud[after[0] : after[1]][::-1]))
        pause = longest_pause(loud, low, high, earliest, latest)
        if pause and before:
            ends[i - 1] = min(pause[0], before[1] + REACH)
        if pause and after:
            starts[i] = max(pause[1], after[0] - REACH)
    return list(zip(starts, ends, strict=True))


def longest_pause(
    loud: NDArray[np.bool_], low: int, high: int, earliest: int, latest: int
) -> tuple[int, int] | None:
    """The longest silence within low..high that is not over before `earliest` and begins before `latest`."""
    edges = np.flatnonzero(np.diff(~loud[low:high], prepend=False, append=False)).reshape(-1, 2) + low
    near = [
        (int(first), int(behind))
        for first, behind in edges
        if behind > earliest and first < latest and behind - first >= SHORTEST_PAUSE
    ]
    return max(near, key=lambda pause: pause[1] - pause[0], default=None)


def upper_heads(dims: Dims) -> list[tuple[int, int]]:
    """All (layer, head) pairs of the upper half of the decoder, which follow the audio in an adapted model.

    OpenAI chose the alignment heads of its own models; in the causal tiny.en they look some 0.3 s late.
    """
    layers = range(dims.n_text_layer // 2, dims.n_text_layer)
    return [(layer, head) for layer in layers for head in range(dims.n_text_head)]


def timed_words(
    model: Whisper,
    audio: list[tuple[Tensor, Tensor]],
    tokens: list[int],
    n_frames: int,
    *,
    samples: Tensor | NDArray[np.float32] | None = None,
    prefix: tuple[int, ...] | None = None,
    context: tuple[int, ...] = (),
    heads: list[tuple[int, int]] | None = None,
    calibrate: Calibration = RAW,
) -> list[TimedWord]:
    """Words of `tokens` with times and confidences, by teacher-forcing them over what was heard.

    Args:
        audio: each decoder layer's cross-attention keys and values (1, H, T, D).
        tokens: text tokens, without prefix and EOT.
        n_frames: encoder frames of real audio, at most T.
        samples: (n,) of the same audio at 16 kHz, to find the words' edges in.
        prefix: what stood in front of the tokens, if not the vocabulary's prefix; two tokens at least.
        context: text tokens between prefix and `tokens`, said in the audio before them.
        heads: (layer, head) pairs whose attention follows the audio, if not the model's alignment heads.
        calibrate: what makes a confidence of the mean probability: `calibration(model.dims, ...)`.
    """
    if not tokens:
        return []
    vocabulary = model.vocabulary
    prefix = prefix or vocabulary.prefix
    sequence = upload(torch.tensor([[*prefix, *context, *tokens, vocabulary.eot]]), model.device)
    scores, hidden = model.decoder.alignment_pass(sequence, heads or model.alignment_heads, audio)
    n_before = len(prefix) + len(context)
    logprobs = model.decoder.project(hidden[n_before - 1 : -2]).float().log_softmax(-1)
    chosen = logprobs.gather(1, sequence[0, n_before:-1, None])[:, 0].cpu()  # of all words at once
    # A token's row is that of the position which predicts it. The row before the first takes the silence in front of
    # it, EOT's row what follows the last.
    rows = scores[:, len(prefix) - 2 : -1]
    first, behind = (frames[1 + len(context) :] for frames in token_frames(rows, n_frames))
    words = vocabulary.words(tokens)
    spans, confidences, i = [], [], 0
    for _, n in words:
        spoken = n_spoken(tokens[i : i + n], vocabulary)
        last = i + spoken - 1  # the pause belongs to the punctuation
        end = behind[last]
        if last + 1 < len(tokens):
            end = min(end, first[last + 1])  # neighbours share a frame of the path
        spans.append((first[i] * HOPS_PER_FRAME, max(end, first[i] + 1) * HOPS_PER_FRAME))
        confidences.append(calibrate(float(chosen[i : i + spoken].mean().exp())))
        i += n
    if samples is not None:
        spans = refine(spans, loudness(samples))
    return [
        TimedWord(text, first / HOPS_PER_SECOND, behind / HOPS_PER_SECOND, confidence, n)
        for (text, n), (first, behind), confidence in zip(words, spans, confidences, strict=True)
    ]
