"""Low-rank adapters through peft, to be trained: attach, save, load. Those that serve are folded in: merged.py."""

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import Linear
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters.merged import CARELESS, Kind, check, refusal
from adapters.shipped import AdapterError
from asr.checkpoint import Whisper

#: Every projection of attention and both layers of the MLPs.
TARGETS = r"(query|key|value|out|mlp\.0|mlp\.2)"


def attach(model: Whisper, *, encoder_rank: int = 128, decoder_rank: int = 64) -> PeftModel:
    """Puts trainable adapters, alpha = rank, on every attention and MLP projection of `model`.

    The causal encoder has most to relearn, so it gets the larger rank. A rank of 0 leaves that half alone.
    """
    half = "" if encoder_rank and decoder_rank else r"encoder\." if encoder_rank else r"decoder\."
    config = LoraConfig(
        r=decoder_rank or encoder_rank,
        lora_alpha=decoder_rank or encoder_rank,
        rank_pattern={r"encoder\..*": encoder_rank} if encoder_rank else {},
        alpha_pattern={r"encoder\..*": encoder_rank} if encoder_rank else {},
        target_modules=rf"{half}.*\.{TARGETS}",
    )
    adapted = get_peft_model(model, config)
    _fold(adapted)
    return adapted


def _fold(adapted: PeftModel) -> None:
    """Makes every adapted layer form its weight first, W + s B A, and then go over the frames once.

    peft goes over them three times, which pays where frames are few; a batch of minutes has thousands, and a
    training step takes a third longer that way.
    """
    for module in adapted.modules():
        if isinstance(module, Linear):
            module.forward = partial(_forward_folded, module)  # type: ignore[method-assign]


def _forward_folded(layer: Linear, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    base = cast(nn.Linear, layer.get_base_layer())
    a, b = (cast(nn.Linear, pair[name]).weight for pair in (layer.lora_A, layer.lora_B))
    return F.linear(x, base.weight + layer.scaling[name] * (b @ a), base.bias)


def load(model: Whisper, directory: Path, *, kind: Kind = CARELESS, trainable: bool = False) -> PeftModel:
    """Puts the adapter saved in `directory` on `model`, unmerged.

    Raises:
        AdapterError: nothing there, made for another model, or taught what this version does not ask.
    """
    check(directory, kind)
    try:
        adapted = PeftModel.from_pretrained(
            model,
            str(directory),
            is_trainable=trainable,
            torch_device=str(model.device),  # or a GPU, if there is one
        )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        raise refusal(directory, error) from error
    _fold(adapted)
    return adapted


def read(adapted: PeftModel, directory: Path, part: str = "") -> None:
    """Copies the weights saved in `directory` into an adapter of the same shape, to train on from there.

    Args:
        part: "encoder" or "decoder" takes that half alone.

    Raises:
        AdapterError: nothing there, or made for another model or other ranks.
    """
    try:
        saved = load_file(directory / "adapter_model.safetensors")
        saved = {name: weight for name, weight in saved.items() if f"{part}." in name}
        refused: Any = set_peft_model_state_dict(adapted, saved)
        fits = not refused.unexpected_keys
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"no adapter in {directory}: adapter_model.safetensors cannot be read") from error
    except RuntimeError:  # torch: other shapes
        fits = False
    if not fits:
        raise AdapterError(f"the adapter in {directory} was made for another model or other ranks")


def save(
    adapted: PeftModel,
    directory: Path,
    dtype: torch.dtype = torch.float16,
    *,
    kind: Kind = CARELESS,
    begun: Path | None = None,
    kept: float = 0.0,
) -> None:
    """Writes the adapter in peft's own format, its weights as `dtype` safetensors, and what it was taught.

    Args:
        begun, kept: folder of the adapter that training began with, and its share in the mean that is written. The
            mean, here of both factors, errs less on speech like none of the training's (WiSE-FT, arXiv 2109.01903).
    """
    state = {name: weight.float() for name, weight in adapted.state_dict().items() if "lora_" in name}
    if begun is not None and kept:
        first = load_file(begun / "adapter_model.safetensors", device=str(adapted.device))
        state = {
            name: weight.lerp(first[name.replace(".default.", ".")].float(), kept)
            for name, weight in state.items()
        }
    state = {name: weight.to(dtype) for name, weight in state.items()}
    adapted.save_pretrained(str(directory), state_dict=state, safe_serialization=True)
    (directory / kind.file).write_text(json.dumps(kind.taught) + "\n")
