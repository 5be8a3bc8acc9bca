"""The largest of many scores, found another way than torch finds it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.peaks import log_sum_exp, near_peaks, peaks

WIDTHS = (1, 7, 4_099, 50_257, 51_864, 51_865)  # below what is folded, a prime, and vocabularies


def scores(rows: int, width: int, seed: int = 0) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3
    x[:, ::5] = -torch.inf
    x[:, width // 2] = x[:, width // 2].nan_to_num(neginf=0.0)
    return x


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("rows", "most"), [(1, 1), (3, 1), (1, 9), (3, 2), (3, 5)])
def test_peaks_are_the_largest_and_where_they_are(rows: int, most: int, width: int) -> None:
    x, most = scores(rows, width), min(most, width)
    values, indices = peaks(x, most)
    assert torch.equal(values, x.topk(most).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == most for row in indices.tolist())


@given(st.integers(0, 50_256), st.integers(0, 10_000))
def test_a_peak_is_found_wherever_it_lies(place: int, seed: int) -> None:
    x = scores(2, 50_257, seed)
    x[1, place] = 100.0
    for most in (1, 4):
        assert peaks(x, most)[1][1, 0] == place


def test_peaks_of_a_view_and_of_what_is_no_number() -> None:
    x = scores(4, 51_864)
    assert torch.equal(peaks(x[:, :50_257])[1], x[:, :50_257].argmax(-1, keepdim=True))
    x[2, 7] = torch.nan
    assert 0 <= peaks(x)[1][2] < 51_864


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("margin", [1.0, 6.0])
def test_near_peaks_are_all_within_the_margin(width: int, margin: float) -> None:
    x = scores(3, width)
    expected = (x > x.amax(1, keepdim=True) - margin).nonzero()
    found = torch.stack(near_peaks(x, margin), dim=1)
    assert sorted(found.tolist()) == expected.tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_log_sum_exp_is_that(width: int) -> None:
    x = scores(3, width)
    torch.testing.assert_close(log_sum_exp(x, peaks(x)[1][:, 0]), x.logsumexp(-1))
