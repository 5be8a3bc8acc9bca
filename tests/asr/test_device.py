"""Choosing a device: what is named and is there, and one line for what is not."""

import re

import pytest
import torch

from asr.device import FIRST, LAST, choose, handed_over, own_stream
from tests.paper_gpu import paper_gpu


def gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


@pytest.mark.parametrize(
    ("n_gpus", "name", "device"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_what_is_there(monkeypatch: pytest.MonkeyPatch, n_gpus: int, name: str, device: str) -> None:
    gpus(monkeypatch, n_gpus)
    assert choose(name) == torch.device(device)


@pytest.mark.parametrize(
    ("n_gpus", "built", "name", "words"),
    [
        (0, "13.0", "cuda", "device cuda: torch finds no GPU that it can use; `cpu` and `auto` work here"),
        (0, None, "cuda:1", "device cuda:1: this torch was built for CPUs only; `cpu` and `auto` work here"),
        (2, "13.0", "cuda:2", "device cuda:2: torch sees 2 here, and counts from cuda:0"),
        (2, "13.0", "gpu", "no device is called 'gpu': use auto, cpu, cuda or cuda:N"),
        (2, "13.0", "cuda:-1", "no device is called 'cuda:-1': use auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_is_not(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, built: str | None, name: str, words: str
) -> None:
    gpus(monkeypatch, n_gpus)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match=re.escape(words) + "$"):
        choose(name)


def test_a_thread_takes_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind what has been launched so far: the weights are there when it begins."""
    own_stream(torch.device("cpu"), LAST)
    with paper_gpu(monkeypatch) as gpu:
        own_stream(torch.device("cuda", 0), FIRST)
        assert gpu.stream is not gpu.default
        assert gpu.stream.priority < gpu.default.priority == LAST
        assert gpu.stream.awaited == [gpu.default]


def test_what_another_thread_takes_is_waited_for_in_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(3)
    assert handed_over(x)() is x
    with paper_gpu(monkeypatch) as gpu:
        own_stream(torch.device("cuda", 0), FIRST)
        taken, maker = handed_over(x.to("cuda:0")), gpu.stream
        own_stream(torch.device("cuda", 0), LAST)
        assert taken().tolist() == [0, 1, 2]
        assert gpu.stream.awaited == [gpu.default, maker]
