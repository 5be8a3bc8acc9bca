"""The benchmark: its contestants compute the same thing; without a GPU it says so."""

from pathlib import Path

import pytest
import torch

from kernels import bench

SMALL = bench.Scale(streams=(1, 3), capacity=40, chunk=7, windows=2, frames=(21,), tau=4, heads=2, width=16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_contestants_compute_the_same() -> None:
    seen = []
    for case in bench.cases(SMALL, torch.device("cpu"), torch.float32):
        seen.append(case.name)
        if case.name.endswith("both"):
            del case.contestants[bench.FLEX]  # which has no gradients on CPUs
        assert len(case.contestants) > 1
        bench.agree(case)
    assert {name.partition(",")[0] for name in seen} == set(bench.KERNELS)


def test_a_contestant_that_errs_is_named() -> None:
    ways = {bench.OURS: lambda: (torch.ones(3),), "other": lambda: (torch.zeros(3),)}
    with pytest.raises(AssertionError, match="other differs from ours by 100"):
        bench.agree(bench.Case("attention", "small", ways, 0, 0))


def test_pairs_of_a_window_are_counted() -> None:
    """The floor's arithmetic is that of what a mask lets through, not of the square."""
    block = (torch.arange(21) + 1) // 4
    mask = bench.block_causal_mask(block, SMALL.views)
    forward, both = bench.KERNELS["block_causal_attention"](SMALL, torch.device("cpu"), torch.float32)
    pairs = int(mask.sum()) * SMALL.windows * SMALL.heads
    assert forward.n_flops == 4 * pairs * SMALL.width
    assert both.n_flops == 14 * pairs * SMALL.width


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "160")
    assert bench.main(["--out", str(tmp_path / "bench.json")]) == 0
    told = capsys.readouterr().out
    assert "There is no GPU here" in told
    assert all(name in told for name in bench.KERNELS)
    assert told.count("not measured") == 3 * len(bench.KERNELS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--out", str(tmp_path / "none" / "bench.json")])
    assert stopped.value.code == 2
    assert "create it, or choose another --out" in capsys.readouterr().err
