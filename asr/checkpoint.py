"""A model's name -> verified weights -> our modules."""

import base64
import gzip
import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import whisper
from torch import nn
from whisper.tokenizer import Tokenizer, get_tokenizer

from asr.decoder import Decoder
from asr.encoder import Encoder
from asr.mel import N_MELS
from asr.weights import Dims, WeightsError, fetch, read

TIMESTAMP_S = 0.02  # between Whisper's timestamp tokens


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that decoding needs to know by name."""

    tokenizer: Tokenizer
    prefix: tuple[int, ...]  # what every hypothesis starts with
    eot: int  # "wait for audio" to the causal model, "the end" to the unmodified one

    def prefix_for(self, delay_s: float) -> tuple[int, ...]:
        """The prefix that asks a causal model to wait `delay_s` after a word's end before it is said.

        In place of "no timestamps" stands a timestamp: to Whisper its embeddings are ordered durations already.
        """
        assert self.prefix[-1] == self.tokenizer.no_timestamps
        return (*self.prefix[:-1], self.tokenizer.timestamp_begin + round(delay_s / TIMESTAMP_S))

    @property
    def wait(self) -> int:
        return self.eot

    def encode(self, text: str) -> list[int]:
        """Tokens of text at a word's beginning; what looks like a special token is text, too."""
        tokens: list[int] = self.tokenizer.encode(" " + text, disallowed_special=())
        return tokens

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token < self.eot])

    def words(self, tokens: list[int]) -> list[tuple[str, int]]:
        """(word, number of tokens). Punctuation belongs to its word, as the tokenizer cuts at spaces."""
        words, counts = self.tokenizer.split_to_word_tokens(tokens)
        merged: list[tuple[str, int]] = []
        for word, ids in zip(words, counts, strict=True):
            joins = merged and (not word.startswith(" ") or word.strip() in string.punctuation)
            if joins:
                merged[-1] = (merged[-1][0] + word, merged[-1][1] + len(ids))
            else:
                merged.append((word, len(ids)))
        return [(word.strip(), n) for word, n in merged]


class Whisper(nn.Module):
    """Encoder and decoder of one checkpoint. Module names are OpenAI's."""

    def __init__(self, dims: Dims, alignment_heads: list[tuple[int, int]]) -> None:
        super().__init__()
        self.dims = dims
        self.alignment_heads = alignment_heads  # (layer, head) pairs whose attention follows the audio
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)

    @property
    def device(self) -> torch.device:
        return self.decoder.ln.weight.device

    @cached_property
    def vocabulary(self) -> Vocabulary:
        multilingual = self.dims.n_vocab >= 51_865
        tokenizer = get_tokenizer(multilingual, language="en" if multilingual else None, task="transcribe")
        return Vocabulary(tokenizer, tokenizer.sot_sequence_including_notimestamps, tokenizer.eot)


def load(name: str, *, device: torch.device | str = "cpu") -> Whisper:
    """The unmodified model `name` ("tiny.en", "base.en" or the path of a checkpoint file) in float32.

    Raises:
        asr.weights.WeightsError: no source of the weights worked, or they are not what they should be.
    """
    dims, tensors = read(fetch(name))
    if dims.n_mels != N_MELS:
        raise WeightsError(f"{name} was made for {dims.n_mels} mel bands; models of {N_MELS} are supported")
    model = Whisper(dims, alignment_heads(name, dims))
    own = {k: v.float() for k, v in tensors.items() if k != "alignment_heads"}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise WeightsError(f"{name} is no Whisper checkpoint: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False).to(device)


def alignment_heads(name: str, dims: Dims) -> list[tuple[int, int]]:
    """The (layer, head) pairs that OpenAI found to follow the audio; for unknown models, the later half.

    Args:
        name: of a model, or the path of a file that is called after one ("tiny.en.pt").
    """
    file = Path(name).name
    known = (key for key in (name, file, Path(file).stem) if key in whisper._ALIGNMENT_HEADS)
    dump = whisper._ALIGNMENT_HEADS.get(next(known, ""))
    if dump is None:
        return [
            (i, h) for i in range(dims.n_text_layer // 2, dims.n_text_layer) for h in range(dims.n_text_head)
        ]
    flat = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool)
    mask = flat.reshape(dims.n_text_layer, dims.n_text_head)
    return [(int(layer), int(head)) for layer, head in np.argwhere(mask)]
