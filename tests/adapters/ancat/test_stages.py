"""What a plan is told before any of its days have begun."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import loading
from adapters.align import ALIGNED
from adapters.ancat.stages import HEAD, Plan, Stages, of_policy
from adapters.shipped import find, shipped
from asr.audio import read_audio
from asr.checkpoint import Whisper
from streaming.engine import Engine
from streaming.events import Closed
from streaming.listen import listen
from streaming.session import SessionOptions
from streaming.transducer import TransducerRecognizer
from tests.adapters.ancat.conftest import N_PIECES

SAMPLES = Path(__file__).parents[3] / "samples"


def test_heads_have_recipes() -> None:
    assert of_policy(HEAD, "adaptive:80").target_ms == 80
    assert of_policy(HEAD, "adaptive:80").policy == of_policy(HEAD, "adaptive").policy == "adaptive"
    assert of_policy(HEAD, "adaptive").target_ms == HEAD.target_ms
    assert of_policy(HEAD, "layerwise:1,1,0,0").policy == "layerwise:1,1,0,0"


@pytest.mark.parametrize(
    "policy", ["adaptve:80", "adaptive:fast", "adaptive:0", "layerwise:1,1", "random", ""]
)
def test_a_wrong_policy_is_told_before_anything_is_trained(
    manifest: Path, tmp_path: Path, policy: str
) -> None:
    stages = Stages(manifest, tmp_path, tmp_path, Plan(n_pieces=N_PIECES), lambda *_: None)
    with pytest.raises(ValueError, match="no policy"):
        stages.run(["adaptive:80", policy])
    assert [path.name for path in tmp_path.iterdir()] == ["pieces.model"]


def test_an_alignment_of_other_clips_is_told(manifest: Path, tmp_path: Path) -> None:
    other = {"id": "x", "audio": "/x.wav", "seconds": 1.0, "words": [["x", 0, 1]], "offset": 0, "frames": 50}
    (tmp_path / ALIGNED).write_text(json.dumps(other) + "\n")
    with pytest.raises(ValueError, match="holds no clip of"):
        Stages(manifest, tmp_path / "run", tmp_path, Plan(n_pieces=N_PIECES), lambda *_: None, tmp_path)


def test_all_stages_end_in_heads_that_can_be_served(tiny_en: Whisper, tmp_path: Path) -> None:
    """A step of each, on real weights and real speech; a second run has nothing left to do."""
    careless, short = shipped("tiny.en"), {"steps": 1, "batch_seconds": 12.0}
    assert careless is not None
    plan = Plan(n_pieces=40, draws=1)
    plan = replace(
        plan,
        first=replace(plan.first, **short),
        trunk=replace(plan.trunk, steps=0),
        any=replace(plan.any, **short),
        head=replace(plan.head, **short),
    )
    shown: list[str] = []

    def run() -> list[Path]:
        shown.clear()
        stages = Stages(
            SAMPLES / "manifest.jsonl", tmp_path, careless, plan, lambda stage, *_: shown.append(stage)
        )
        return stages.run(["adaptive:320", "chunked:3"])

    heads = run()
    assert [head.name for head in heads] == ["ancat-tiny.en-320", "ancat-tiny.en-chunked-3"]
    assert list(dict.fromkeys(shown)) == ["first", "features", "any", "adaptive-320", "chunked-3"]
    assert run() == heads
    assert not shown
    for head in heads:
        chosen = find(str(head))
        assert chosen.base == "tiny.en"
        model = loading.transducer(tiny_en, chosen.adapter, head)
        engine = Engine(TransducerRecognizer(model), tiny_en, head.name, slots=1, final_pass_thread=False)
        options = SessionOptions(final_pass="none")
        events = list(listen(engine, [read_audio(SAMPLES / "jfk.wav")], options))
        assert isinstance(events[-1], Closed)
        assert events[-1].audio_ms == 11_000
