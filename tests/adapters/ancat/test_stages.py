"""What a plan is told before any of its days have begun."""

import json
from pathlib import Path

import pytest

from adapters.align import ALIGNED
from adapters.ancat.stages import HEAD, Plan, Stages, of_policy
from tests.adapters.ancat.conftest import N_PIECES


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
