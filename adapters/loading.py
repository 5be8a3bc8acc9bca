"""A base model and what we add to it -> the modules that stream, adapters merged."""

import copy
import json
from pathlib import Path

from safetensors import SafetensorError

from adapters import merged
from adapters.shipped import AdapterError
from asr.checkpoint import Whisper
from asr.transducer.language import load_language
from asr.transducer.model import Transducer, load_head
from asr.transducer.rescorer import Rescorer


def causal(base: Whisper, adapter: Path | None) -> Whisper:
    """A copy of `base` with the adapter merged; None leaves it as it is, which does not stream well.

    Raises:
        AdapterError: see `merged.fold`.
    """
    return _merged(_copy(base), adapter, merged.CARELESS)


def transducer(base: Whisper, trunk: Path | None, head: Path, language: Path | None = None) -> Transducer:
    """The head in `head` on a trunk made of a copy of `base`.

    Args:
        trunk: the trunk's adapter, or a causal Whisper's, of which the encoder is taken; None leaves the encoder as
            it is, for experiments.
        language: folder of what texts make likely; None weighs none.

    Raises:
        AdapterError: trunk, head or language are missing, or do not fit this model.
    """
    kind = merged.CARELESS if trunk and (trunk / merged.CARELESS.file).is_file() else merged.TRUNK
    encoder = _merged(_copy(base), trunk, kind).encoder
    try:
        model = load_head(encoder, head)
    except _DAMAGED as error:
        raise AdapterError(f"the head in {head} cannot be put on this model: {_reason(error)}") from error
    try:
        model.language = load_language(language, len(model.pieces)) if language else None
    except _DAMAGED as error:
        raise AdapterError(f"the texts in {language} cannot be weighed: {_reason(error)}") from error
    return model


def rescorer(base: Whisper, folder: Path) -> Rescorer:
    """What weighs a transducer's hypotheses, from a copy of `base` and the adapter in `folder`.

    Raises:
        AdapterError: the adapter is missing, does not fit, or has no weight.
    """
    decoder = _merged(_copy(base), folder, merged.RESCORER).decoder
    try:
        weight = float(json.loads((folder / merged.RESCORER.file).read_text())["weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{folder / merged.RESCORER.file} has no weight: train the rescorer again, or set one from 0 to 1"
        ) from error
    return Rescorer(decoder, base.vocabulary, weight)


_DAMAGED = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _copy(base: Whisper) -> Whisper:
    """All but the embedding, half of a small model, which no adapter of ours changes: the copy has the same one."""
    embedding = base.decoder.token_embedding
    return copy.deepcopy(base, {id(embedding): embedding})


def _merged(model: Whisper, adapter: Path | None, kind: merged.Kind) -> Whisper:
    return model if adapter is None else merged.fold(model, adapter, kind)
