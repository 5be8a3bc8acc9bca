"""The streaming contract: one set of checks for every stage that audio flows through.

A stage is described to the checks by a `Subject`. Each check raises AssertionError where the contract is
broken; a test runs them all:

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check: Check) -> None:
        check(LogMelSubject())
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4  # fp32

Outputs = list[
    Any
]  # of one stream, oldest first: a tensor per output frame, or something that compares by ==


class Subject:
    """A stage as the contract sees it: streams go in, each output frame comes out on its own.

    Attributes:
        stage: what is checked; it has `stride`, `lookahead`, `init_state`, `step` and `reset`.
        n: input frames of a stream, enough for several outputs.
        longest: most input frames that one step may take in.
    """

    stage: Any
    n: int
    longest: int

    def inputs(self, rows: int, seed: int) -> Tensor:
        """Random streams (rows, ..., n)."""
        raise NotImplementedError

    def init_state(self, rows: int) -> Any:
        return self.stage.init_state(rows)

    def reset(self, state: Any, rows: Tensor) -> None:
        self.stage.reset(state, rows)

    def step(self, x: Tensor, state: Any, rows: Tensor) -> list[Outputs]:
        """The outputs that new input x (B, ..., t) of `rows` (B,) completes, for each of them."""
        raise NotImplementedError

    def due(self, i: int, output: Any) -> int:
        """Input frames after which output `i` is out, and never changes."""
        return (i + 1) * self.stage.stride + self.stage.lookahead

    def poison(self, state: Any) -> None:
        """Puts NaN wherever the state holds numbers: whatever is read before it is written shows."""
        fill_with_nan(state)


Check = Callable[[Subject], None]


def any_cutting_gives_what_one_step_gives(subject: Subject) -> None:
    x = subject.inputs(1, seed=0)
    expected = alone(subject, x)
    for seed in range(3):
        assert_same(run(subject, x, random_cuts(subject, seed)), expected)


def outputs_are_prompt_and_causal(subject: Subject) -> None:
    """By its declared lookahead an output is out, and what comes later does not change it."""
    x, other = subject.inputs(1, seed=0), subject.inputs(1, seed=1)
    expected = alone(subject, x)
    for share in (0.35, 0.6, 0.8):
        now = int(share * subject.n)
        n_due = sum(subject.due(i, output) <= now for i, output in enumerate(expected))
        assert 0 < n_due < len(expected), "the stream is too short to tell"
        state, row = subject.init_state(1), torch.tensor([0])
        outputs = feed(subject, x[..., :now], state, row)[0]
        assert len(outputs) >= n_due
        outputs += feed(subject, other[..., now:], state, row)[0]
        assert_same(outputs[:n_due], expected[:n_due])
        assert differ(outputs, expected), "later outputs ignore the audio: this check could not fail"


def neighbours_do_not_leak(subject: Subject) -> None:
    x = subject.inputs(1, seed=0)
    nan = torch.full_like(x, torch.nan)
    beside = torch.cat([nan, x, nan])
    outputs = run_together(subject, beside, random_cuts(subject, 0), rows=torch.tensor([2, 0, 3]), slots=4)
    assert_same(outputs[1], alone(subject, x))


def interleaved_streams_equal_each_alone(subject: Subject) -> None:
    x = subject.inputs(2, seed=0)
    state = subject.init_state(3)
    turns = [(row, piece) for row in (0, 1) for piece in random_cuts(subject, row)]
    order = torch.randperm(len(turns), generator=torch.Generator().manual_seed(0)).tolist()
    queues = {row: iter([piece for r, piece in turns if r == row]) for row in (0, 1)}
    outputs: list[Outputs] = [[], []]
    for row in (turns[i][0] for i in order):
        outputs[row] += subject.step(
            x[row : row + 1, ..., next(queues[row])], state, torch.tensor([2 - row])
        )[0]
    for row in (0, 1):
        assert_same(outputs[row], alone(subject, x[row : row + 1]))


def reset_equals_fresh(subject: Subject) -> None:
    """Also after NaN: what a reset leaves behind in a slot is never read."""
    x, before = subject.inputs(1, seed=0), subject.inputs(1, seed=1)
    expected, row = alone(subject, x), torch.tensor([1])
    state = subject.init_state(2)
    feed(subject, before[..., : int(0.7 * subject.n)], state, row)
    subject.reset(state, row)
    assert_same(feed(subject, x, state, row)[0], expected)
    subject.poison(state)
    subject.reset(state, row)
    assert_same(feed(subject, x, state, row)[0], expected)


def batched_equals_single(subject: Subject) -> None:
    x = subject.inputs(3, seed=0)
    outputs = run_together(subject, x, random_cuts(subject, 0), rows=torch.tensor([3, 0, 2]), slots=4)
    for i in range(3):
        assert_same(outputs[i], alone(subject, x[i : i + 1]))


CHECKS: tuple[Check, ...] = (
    any_cutting_gives_what_one_step_gives,
    outputs_are_prompt_and_causal,
    neighbours_do_not_leak,
    interleaved_streams_equal_each_alone,
    reset_equals_fresh,
    batched_equals_single,
)


def alone(subject: Subject, x: Tensor) -> Outputs:
    """The truth: one stream in a state of its own, cut no more than it must be."""
    return feed(subject, x, subject.init_state(1), torch.tensor([0]))[0]


def feed(subject: Subject, x: Tensor, state: Any, rows: Tensor) -> list[Outputs]:
    outputs: list[Outputs] = [[] for _ in rows]
    for piece in x.split(subject.longest, dim=-1):
        for all_of, new in zip(outputs, subject.step(piece, state, rows), strict=True):
            all_of += new
    return outputs


def run(subject: Subject, x: Tensor, cuts: Iterable[slice]) -> Outputs:
    return run_together(subject, x, cuts, rows=torch.tensor([0]), slots=1)[0]


def run_together(
    subject: Subject, x: Tensor, cuts: Iterable[slice], rows: Tensor, slots: int
) -> list[Outputs]:
    """The same pieces of every stream of x, in one batch each, in a state of NaN-filled neighbours."""
    state = subject.init_state(slots)
    subject.poison(state)
    subject.reset(state, rows)
    outputs: list[Outputs] = [[] for _ in rows]
    for piece in cuts:
        for all_of, new in zip(outputs, subject.step(x[..., piece], state, rows), strict=True):
            all_of += new
    return outputs


def random_cuts(subject: Subject, seed: int) -> list[slice]:
    """Pieces of 0, 1 or many frames that cover a stream."""
    g = torch.Generator().manual_seed(seed)
    pieces, at = [], 0
    while at < subject.n:
        size = int(subject.longest * float(torch.rand((), generator=g)) ** 2)
        size = (0, 1, size, size)[int(torch.randint(4, (), generator=g))]
        pieces.append(slice(at, min(subject.n, at + size)))
        at += size
    return pieces


def random_noises(rows: int, n: int, seed: int) -> Tensor:
    """(rows, n) samples: every 100 ms another tone, as loud as it likes, in noise."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, n // 1600 + 1)
    loudness = torch.rand(shape, generator=g).pow(3).repeat_interleave(1600, dim=1)[:, :n] / 2
    frequency = torch.rand(shape, generator=g).repeat_interleave(1600, dim=1)[:, :n] * 0.4
    noise = torch.randn(rows, n, generator=g)
    return loudness * (torch.sin(torch.pi * frequency.cumsum(1)) + 0.1 * noise)


def assert_same(outputs: Outputs, expected: Outputs) -> None:
    assert len(outputs) == len(expected) > 0
    if isinstance(expected[0], Tensor):
        torch.testing.assert_close(
            torch.stack(outputs), torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE
        )
    else:
        assert outputs == expected


def differ(outputs: Outputs, others: Outputs) -> bool:
    try:
        assert_same(outputs, others)
    except AssertionError:
        return True
    return False


def fill_with_nan(state: Any) -> None:
    """Every floating-point tensor within a dataclass of dataclasses."""
    for part in (getattr(state, field.name) for field in fields(state)):
        if is_dataclass(part):
            fill_with_nan(part)
        elif isinstance(part, Tensor) and part.is_floating_point():
            part.fill_(torch.nan)
