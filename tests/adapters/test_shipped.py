"""What a model's name stands for, and the modules that come of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters import loading, lora, merged, shipped
from adapters.shipped import ADAPTER_FILE, HEAD_FILE, AdapterError, Model, find
from asr.audio import stream_audio
from asr.checkpoint import Whisper
from asr.transducer.model import save_head
from asr.weights import WeightsError
from asr_stream import build_engine
from eval.wer import count_edits, pooled
from streaming.events import Final
from streaming.listen import listen
from streaming.session import SessionOptions
from tests.conftest import SAMPLES
from tests.streaming.transducers import random_transducer

FACTS = {"base": "tiny.en", "trunk": "ancat-tiny.en"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A trunk and two heads, empty but for what names them."""
    for name in ("ancat-tiny.en-80", "ancat-tiny.en-320"):
        (tmp_path / name).mkdir()
        (tmp_path / name / HEAD_FILE).write_text(json.dumps(FACTS))
    (tmp_path / "ancat-tiny.en").mkdir()
    (tmp_path / "ancat-tiny.en" / ADAPTER_FILE).touch()
    return tmp_path


def test_names_of_what_comes_with_the_project(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = find("tiny.en")
    assert own.adapter == shipped.WEIGHTS / "careless-tiny.en"
    assert not own.decides_when_to_wait
    assert own.description.startswith("careless-tiny.en ")
    assert find("tiny.en", "none") == Model("tiny.en", None)
    assert find("tiny.en", "none").description == "no adapter"
    monkeypatch.setattr(shipped, "WEIGHTS", folders)
    assert shipped.transducers() == ["ancat-tiny.en-320", "ancat-tiny.en-80"]
    found = find("ancat-tiny.en-320")
    assert found == Model("tiny.en", folders / "ancat-tiny.en", folders / "ancat-tiny.en-320")
    assert found.decides_when_to_wait


def test_folders_of_a_user(folders: Path) -> None:
    head, trunk = folders / "ancat-tiny.en-80", folders / "ancat-tiny.en"
    assert find(str(head)) == find("tiny.en", str(head)) == Model("tiny.en", trunk, head)
    assert find(str(head), "none") == Model("tiny.en", None, head)
    assert find(str(head), "elsewhere") == Model("tiny.en", Path("elsewhere"), head)
    assert find("tiny.en", str(trunk)) == Model("tiny.en", trunk)


def test_a_rescorer_is_found_beside_the_head_or_the_trunk(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, trunk = folders / "ancat-tiny.en-80", folders / "ancat-tiny.en"
    own = folders / "own" / head.name
    own.parent.mkdir()
    head.rename(own)
    monkeypatch.setattr(shipped, "WEIGHTS", folders)
    assert find(str(own)) == Model("tiny.en", trunk, own, None)
    for place in (folders, own.parent):  # the nearer one counts
        rescorer = place / "ancat-tiny.en-rescorer"
        rescorer.mkdir()
        (rescorer / ADAPTER_FILE).touch()
        assert find(str(own)) == find("tiny.en", str(own)) == Model("tiny.en", trunk, own, rescorer)
    assert rescorer / "adapter_model.safetensors" in find(str(own)).files
    assert find(str(own), "none").rescorer is None
    assert shipped.transducers() == ["ancat-tiny.en-320"]


def test_what_is_not_there_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "WEIGHTS", folders / "none")
    with pytest.raises(
        AdapterError, match=r"no transducer ancat-tiny\.en-9 comes with the project \(it has: none"
    ):
        find("ancat-tiny.en-9")
    with pytest.raises(AdapterError, match=r"no adapter for tiny\.en comes with the project"):
        find("tiny.en")
    with pytest.raises(WeightsError, match="name one of"):
        find("ancat-tiny.en")
    head = folders / "ancat-tiny.en-80"
    (folders / "ancat-tiny.en" / ADAPTER_FILE).unlink()
    with pytest.raises(AdapterError, match=r"put the folder ancat-tiny\.en beside it"):
        find(str(head))
    (head / HEAD_FILE).write_text(json.dumps({**FACTS, "base": "huge.en"}))
    with pytest.raises(WeightsError, match="name one of"):
        find(str(head))
    (head / HEAD_FILE).write_text("{}")
    with pytest.raises(AdapterError, match="does not say which base it is for"):
        find(str(head))


def test_a_transducer_is_put_together(make_tiny: Callable[[int], Whisper], tmp_path: Path) -> None:
    base, trunk, head = make_tiny(0), tmp_path / "ancat-tiny.en", tmp_path / "ancat-tiny.en-320"
    adapted = lora.attach(make_tiny(0), encoder_rank=2, decoder_rank=0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    lora.save(adapted, trunk, kind=merged.TRUNK)
    made = random_transducer(make_tiny(0), 1)
    made.trunk.mix.fill_(0.5)
    save_head(made, head, FACTS)
    loaded = loading.transducer(base, trunk, head)
    for name, weight in made.head_state().items():
        torch.testing.assert_close(loaded.head_state()[name], weight, atol=1e-2, rtol=1e-2)
        assert loaded.head_state()[name].dtype == torch.float32
    query = base.encoder.blocks[0].attn.query.weight
    assert torch.equal(query, make_tiny(0).encoder.blocks[0].attn.query.weight)  # the second pass has it
    assert not torch.allclose(loaded.trunk.encoder.blocks[0].attn.query.weight.float(), query, atol=0.1)

    found = find(str(head))
    assert found.description.startswith("ancat-tiny.en-320 ")
    before = found.description
    save_head(random_transducer(make_tiny(0), 2), head, FACTS)
    assert found.description != before

    causal = tmp_path / "careless-tiny.en"
    lora.save(adapted, causal)
    same = loading.transducer(base, causal, head)  # a causal Whisper's encoder does as well
    for own, other in zip(same.trunk.encoder.parameters(), loaded.trunk.encoder.parameters(), strict=True):
        assert torch.equal(own, other)
    (causal / merged.CARELESS.file).unlink()
    with pytest.raises(AdapterError, match="not taught what this version asks of a trunk"):
        loading.transducer(base, causal, head)
    with pytest.raises(AdapterError, match=r"texts in .*elsewhere cannot be weighed"):
        loading.transducer(base, trunk, head, tmp_path / "elsewhere")
    (head / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(AdapterError, match="cannot be put on this model"):
        loading.transducer(base, trunk, head)
    (head / "pieces.model").unlink()
    with pytest.raises(AdapterError, match=r"pieces\.model"):
        loading.transducer(base, trunk, head)


@pytest.mark.parametrize("name", ["ancat-tiny.en-80", "ancat-tiny.en-320"])
def test_shipped_transducers_share_what_they_can(name: str) -> None:
    found = find(name)
    folders = ("ancat-tiny.en", "ancat-tiny.en-rescorer", "ancat-tiny.en-language")
    assert (found.adapter, found.rescorer, found.language) == tuple(shipped.WEIGHTS / one for one in folders)
    assert found.language / "language.safetensors" in found.files


@pytest.mark.parametrize(
    ("name", "beam", "most"),
    [("ancat-tiny.en-80", 1, 0.45), ("ancat-tiny.en-320", 1, 0.45), ("ancat-tiny.en-320", 4, 0.35)],
)
def test_a_shipped_transducer_hears_plain_speech(name: str, beam: int, most: float) -> None:
    """Two thirds of it, about: see its card. A beam knows how words are written, and Austen by heart."""
    engine = build_engine(name, slots=1, threads=1, final_pass_thread=False)
    clips = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text().splitlines()]
    edits = []
    for clip in clips:
        if clip["speaker"] == "librivox-austen":
            audio = stream_audio(SAMPLES / clip["audio"], block_seconds=0.3)
            events = listen(engine, audio, SessionOptions(final_pass="none", beam=beam))
            said = " ".join(event.text for event in events if isinstance(event, Final))
            edits.append(count_edits(clip["text"], said))
    assert pooled(edits).rate < most
