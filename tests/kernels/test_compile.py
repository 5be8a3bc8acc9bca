"""Every kernel compiles for real GPUs, without one."""

import importlib
from pathlib import Path

import pytest
import torch

import kernels
from kernels import compile as ahead

MOST_LOCAL_BYTES = 32  # per thread: a few spilt values are bearable, a tile is not
MOST_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that an A100 and an H100 give one program


@pytest.fixture(scope="module")
def built() -> list[ahead.Compiled]:
    return list(ahead.compile_all(["bf16"], list(ahead.ARCHITECTURES)))


def test_every_kernel_fits_its_processor(built: list[ahead.Compiled]) -> None:
    names = ahead.launches(torch.bfloat16)
    assert {(one.name, one.architecture) for one in built} == {
        (name, sm) for name in names for sm in (80, 90)
    }
    assert all(one.registers > 0 for one in built)
    assert not [one for one in built if one.local_bytes > MOST_LOCAL_BYTES]
    assert not [one for one in built if one.shared_bytes > MOST_SHARED_BYTES[one.architecture]]


def test_no_kernel_is_left_out() -> None:
    compiled = {launch.kernel for launch in ahead.launches(torch.bfloat16).values()}
    for file in Path(kernels.__file__).parent.glob("triton_*.py"):
        module = importlib.import_module(f"kernels.{file.stem}")
        own = {value for name, value in vars(module).items() if name.endswith("_kernel")}
        assert own <= compiled, file.name


def test_a_kernel_that_spills_is_seen() -> None:
    """The measure itself: a tile that cannot fit into registers has to lie elsewhere."""
    launch = ahead.launches(torch.bfloat16)["block_causal forward"]
    arguments = launch.arguments | {"tile_q": 128, "tile_k": 128}
    greedy = ahead.Launch(launch.kernel, launch.grid, arguments, warps=2, stages=1)
    _, local_bytes, _ = ahead.resources(greedy, 80)
    assert local_bytes > MOST_LOCAL_BYTES


def test_the_command_prints_a_table(
    built: list[ahead.Compiled], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert ahead.main(["--sm", "90"]) == 0
    told = capsys.readouterr().out
    for one in built:
        if one.architecture == 90:
            line = next(line for line in told.splitlines() if one.name in line)
            assert f"{one.registers}" in line
            assert f"{one.shared_bytes:,}" in line
