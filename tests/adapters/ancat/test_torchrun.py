"""Training in two processes, as torchrun starts them: they do what one does with both shares, and write once."""

import json
import os
import socket
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from adapters import lora
from adapters.align import ALIGNED
from adapters.ancat import stages
from adapters.ancat.corpus import IGNORED, Batch, Corpus, FeatureCache, read_clips
from adapters.ancat.train import LOG, Recipe, Trainer
from asr.transducer.model import HEAD_CONFIG
from asr.transducer.pieces import Pieces
from asr.transducer.timing import Lateness
from tests.adapters.ancat.conftest import N_PIECES, untrained
from tests.conftest import random_whisper

#: Guided, then guided and priced; without what each process draws for itself. The rate is low, as Adam makes much of
#: the noise in small gradients.
RECIPE = Recipe(
    steps=3,
    policy="adaptive",
    target_ms=40,
    price_rate=0.05,
    batch_seconds=3.75,  # of which none leaves a single clip over, that one process takes and two leave out
    learning_rate=1e-5,
    warmup=1,
    guided=4,
    masked=0.0,
)
ONCE = {"steps": 1, "batch_seconds": 4.0}


class Told(Trainer):
    """Knows of some frames what they say: of more in some clips than in others."""

    def _draw(self, epoch: int, indices: list[int]) -> Batch:
        batch = super()._draw(epoch, indices)
        every = 1 + torch.tensor(indices)[:, None] % 5
        at = torch.arange(batch.features.shape[1])
        known = (at % every == 0) & (at < batch.lengths[:, None])
        return replace(batch, labels=torch.where(known, batch.tokens[:, :1], IGNORED))


@dataclass(frozen=True)
class Task:
    """What a process needs."""

    manifest: Path
    pieces: Path
    cache: FeatureCache
    aligned: Path
    careless: Path
    out: Path


def trained(task: Task, recipe: Recipe, out: Path) -> dict[str, Any]:
    """What a run ends with."""
    pieces = Pieces.read(task.pieces)
    cache = FeatureCache(task.cache.directory, task.cache.width)
    trainer = Told(
        untrained(pieces, dropout=0.0), Corpus(read_clips(task.manifest), pieces), recipe, out, cache
    )
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # in half precision, a frame here and there waits for another span
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        trainer.run()
    parameters = dict(trainer.model.named_parameters())
    return {
        "weights": {name: p.detach() for name, p in parameters.items() if p.requires_grad},
        "gradients": {name: p.grad for name, p in parameters.items() if p.grad is not None},
        "price": trainer.price,
    }


def work(rank: int, task: Task) -> None:
    """One of two processes."""
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.save(trained(task, RECIPE, task.out / "trainer"), task.out / f"{rank}.pt")
    stages.load = lambda *_, **__: random_whisper(0)
    stages.fit_lateness = lambda *_: Lateness(120, 40)
    plan = stages.Plan(n_pieces=N_PIECES, draws=1)
    plan = replace(
        plan, **{name: replace(getattr(plan, name), **ONCE) for name in ("first", "trunk", "any", "head")}
    )
    shown: list[str] = []
    run = stages.Stages(
        task.manifest,
        task.out / "run",
        task.careless,
        plan,
        lambda stage, *_: shown.append(stage),
        task.aligned,
    )
    heads = run.run(["adaptive:80", "causal"])
    told = {"shown": shown, "heads": [head.name for head in heads]}
    (task.out / f"{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def task(
    manifest: Path, pieces: Pieces, cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory
) -> Task:
    """Done by two processes."""
    out = tmp_path_factory.mktemp("torchrun")
    (out / "pieces.model").write_bytes(pieces.model)
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [
        {"id": str(i), "audio": str(manifest.parent / entry["audio"]), "seconds": entry["seconds"],
         "words": entry["words"], "offset": 0, "frames": 0}
        for i, entry in enumerate(entries)
    ]  # fmt: skip
    (out / ALIGNED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    lora.save(lora.attach(random_whisper(0)), out / "careless-tiny.en")
    made = Task(manifest, out / "pieces.model", cache, out, out / "careless-tiny.en", out)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        mp.spawn(work, (made,), nprocs=2)
    return made


def length(vectors: dict[str, Tensor]) -> float:
    return float(torch.cat([vector.flatten() for vector in vectors.values()]).norm())


def test_two_processes_take_the_steps_of_one_with_both_shares(task: Task, tmp_path: Path) -> None:
    first, second = (torch.load(task.out / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["price"] == second["price"] > 0
    for what in ("weights", "gradients"):
        assert first[what].keys() == second[what].keys()
        assert all(torch.equal(first[what][name], second[what][name]) for name in first[what])
    alone = trained(task, replace(RECIPE, batch_seconds=2 * RECIPE.batch_seconds), tmp_path / "alone")
    assert first["price"] == pytest.approx(alone["price"])
    assert first["gradients"].keys() == alone["gradients"].keys()
    away = {name: first["gradients"][name] - gradient for name, gradient in alone["gradients"].items()}
    assert length(away) < 1e-3 * length(alone["gradients"])
    together, whole = (
        [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        for out in (task.out / "trainer", tmp_path / "alone")
    )
    assert [record["step"] for record in together] == [1, 2, 3]
    for one, other in zip(together, whole, strict=True):
        for key in ("rnnt", "ctc", "latency_ms", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_all_stages_run_in_two_processes_and_write_once(task: Task) -> None:
    told = [json.loads((task.out / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0]["heads"] == told[1]["heads"] == ["ancat-tiny.en-80", "ancat-tiny.en-causal"]
    assert list(dict.fromkeys(told[0]["shown"])) == [
        "first",
        "trunk",
        "features",
        "any",
        "adaptive-80",
        "causal",
    ]
    assert told[1]["shown"] == []
    for stage in ("first", "trunk", "any", "adaptive-80", "causal"):
        assert len((task.out / "run" / stage / LOG).read_text().splitlines()) == 1
    facts = json.loads((task.out / "run" / "ancat-tiny.en-80" / HEAD_CONFIG).read_text())
    assert (facts["trunk"], facts["lateness"]) == ("ancat-tiny.en", {"first_ms": 120, "last_ms": 40})
