"""Word times from cross-attention, and word confidences from token probabilities.

The alignment heads' attention is normalised as openai-whisper does (softmax over audio, standard scores over
tokens, median filter), then one monotone path through tokens x frames gives each token its stretch of audio.
"""

import string
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.checkpoint import Vocabulary, Whisper
from asr.encoder import FRAMES_PER_SECOND

MEDIAN_WIDTH = 7  # frames


@dataclass(frozen=True)
class TimedWord:
    """`text` without surrounding space; times in seconds from the start of the audio."""

    text: str
    start: float
    end: float
    confidence: float  # geometric mean of the token probabilities
    n_tokens: int


def token_frames(scores: Tensor, n_frames: int) -> tuple[list[int], list[int]]:
    """Where in the audio each token lies.

    Args:
        scores: (heads, u, T) attention scores; row i belongs to the position that *predicts* token i.
        n_frames: frames of real audio, at most T.

    Returns:
        u first frames, and u frames behind the last one, of the tokens.
    """
    weights = scores[:, :, :n_frames].float().softmax(dim=-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / (std + 1e-9)
    half = MEDIAN_WIDTH // 2
    if n_frames > half:
        padded = torch.nn.functional.pad(weights, (half, half), mode="reflect")
        weights = padded.unfold(-1, MEDIAN_WIDTH, 1).median(dim=-1).values
    return monotone_path(weights.mean(dim=0))


def monotone_path(gain: Tensor) -> tuple[list[int], list[int]]:
    """The best division of frames among tokens in order; a token may share its frame with the next.

    Dynamic time warping with steps (0, 1), (1, 1), (1, 0) over gain (u, T).

    Returns:
        u first frames, and u frames behind the last one, of the tokens.
    """
    u, n_frames = gain.shape
    cost = (-gain).cpu().double().numpy()
    total = torch.full((u + 1, n_frames + 1), torch.inf, dtype=torch.float64).numpy()
    total[0, 0] = 0
    # Cells of one anti-diagonal do not depend on each other.
    for diagonal in range(2, u + n_frames + 1):
        i = torch.arange(max(1, diagonal - n_frames), min(u, diagonal - 1) + 1).numpy()
        j = diagonal - i
        best = total[i - 1, j - 1]
        best = best.clip(max=total[i, j - 1])
        best = best.clip(max=total[i - 1, j])
        total[i, j] = cost[i - 1, j - 1] + best
    first, behind = [0] * u, [0] * u
    token, frame = u, n_frames
    while token > 0 and frame > 0:
        first[token - 1] = frame - 1
        behind[token - 1] = max(behind[token - 1], frame)
        moves = (total[token - 1, frame - 1], total[token, frame - 1], total[token - 1, frame])
        move = moves.index(min(moves))
        token, frame = token - (move != 1), frame - (move != 2)
    return first, behind


def words_of(tokens: list[int], vocabulary: Vocabulary) -> list[tuple[str, int]]:
    """Tokens -> (word, number of tokens). Punctuation belongs to its word, as the tokenizer cuts at spaces."""
    words, counts = vocabulary.tokenizer.split_to_word_tokens(tokens)
    merged: list[tuple[str, int]] = []
    for word, ids in zip(words, counts, strict=True):
        joins = merged and (not word.startswith(" ") or word.strip() in string.punctuation)
        if joins:
            merged[-1] = (merged[-1][0] + word, merged[-1][1] + len(ids))
        else:
            merged.append((word, len(ids)))
    return [(word.strip(), n) for word, n in merged]


def n_spoken(tokens: list[int], vocabulary: Vocabulary) -> int:
    """How many tokens of a word are spoken: all but the punctuation behind it, at least one."""
    n = len(tokens)
    while n > 1 and not any(c.isalnum() for c in vocabulary.tokenizer.decode(tokens[n - 1 : n])):
        n -= 1
    return n


def timed_words(
    model: Whisper, audio: list[tuple[Tensor, Tensor]], tokens: list[int], n_frames: int
) -> list[TimedWord]:
    """Words of `tokens` with times and confidences, by teacher-forcing them over what was heard.

    Args:
        audio: each decoder layer's cross-attention keys and values (1, H, T, D).
        tokens: text tokens, without prefix and EOT.
        n_frames: encoder frames of real audio, at most T.
    """
    if not tokens:
        return []
    vocabulary = model.vocabulary
    sequence = torch.tensor([[*vocabulary.prefix, *tokens, vocabulary.eot]], device=model.device)
    scores, hidden = model.decoder.alignment_pass(sequence, model.alignment_heads, audio)
    start = len(vocabulary.prefix) - 1  # the position that predicts the first token
    logprobs = model.decoder.project(hidden[start:-2]).float().log_softmax(-1)
    chosen = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
    # The row before takes the silence in front of the first word, EOT's row what follows the last.
    first, behind = (frames[1:] for frames in token_frames(scores[:, start - 1 : -1], n_frames))
    timed, i = [], 0
    for text, n in words_of(tokens, vocabulary):
        last = i + n_spoken(tokens[i : i + n], vocabulary) - 1  # the pause belongs to the punctuation
        end = behind[last]
        if last + 1 < len(tokens):
            end = min(end, first[last + 1])  # neighbours share a frame of the path
        end = max(end, first[i] + 1)
        confidence = float(chosen[i : i + n].mean().exp())
        timed.append(TimedWord(text, first[i] / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND, confidence, n))
        i += n
    return timed
