"""What holds for every loss on any group: order, padding, constants, size, slopes."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.preference import preferred
from stages.preference_losses import LOSSES, Scores

torch.set_num_threads(1)
numbers = st.floats(-8, 8, width=32)
EVERY = sorted(LOSSES)
some = settings(max_examples=20, deadline=None)
SHIFT_FREE = [name for name in EVERY if name != "dpo_norm"]  # lengths differ there


def scores(g: torch.Tensor, *, k: int, dtype: torch.dtype = torch.float64) -> Scores:
    """Groups of k candidates without ties, in columns of which the rest is padding."""
    b, width = g.shape
    mask = torch.zeros(b, width, dtype=torch.bool)
    mask[:, :k] = True
    pairs = torch.zeros(b, width, width, dtype=torch.bool)
    for i, j in preferred(list(range(k)), [1] + [-1] * (k - 1), "all"):
        pairs[:, i, j] = True
    places = torch.arange(width).expand(b, -1)
    return Scores(
        g, places, mask, pairs, 1 + places.to(dtype), (-places).to(dtype),
        torch.full(pairs.shape, 0.8, dtype=dtype), torch.full((b,), 0.2, dtype=dtype),
        torch.ones(b, dtype=dtype),
    )  # fmt: skip


groups = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=1, max_size=3)
)


@pytest.mark.parametrize("name", EVERY)
@some
@given(values=groups, junk=st.floats(-1e30, 1e30))
def test_masked_candidates_change_nothing(name: str, values: list, junk: float) -> None:
    g = torch.tensor(values, dtype=torch.float64)
    k = g.shape[1]
    padded = torch.cat([g, torch.full((len(g), 2), junk, dtype=torch.float64)], dim=1)
    plain, wide = g.clone().requires_grad_(), padded.requires_grad_()
    one, two = LOSSES[name](scores(plain, k=k)), LOSSES[name](scores(wide, k=k))
    torch.testing.assert_close(one, two)
    one.sum().backward()
    two.sum().backward()
    torch.testing.assert_close(plain.grad, wide.grad[:, :k])
    assert not wide.grad[:, k:].any()


@pytest.mark.parametrize("name", EVERY)
@some
@given(values=groups)
def test_a_group_does_not_see_the_others_of_its_batch(name: str, values: list) -> None:
    g = torch.tensor(values, dtype=torch.float64)
    together = LOSSES[name](scores(g, k=g.shape[1]))
    alone = [LOSSES[name](scores(row[None], k=g.shape[1])) for row in g]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(LOSSES[name](scores(g.flip(0), k=g.shape[1])), together.flip(0))


@pytest.mark.parametrize("name", SHIFT_FREE)
@some
@given(values=groups, shift=st.floats(-5, 5))
def test_a_constant_added_to_a_group_changes_nothing(name: str, values: list, shift: float) -> None:
    g = torch.tensor(values, dtype=torch.float64).round(decimals=3)  # no new ties by rounding
    k = g.shape[1]
    torch.testing.assert_close(
        LOSSES[name](scores(g + round(shift, 1), k=k)), LOSSES[name](scores(g, k=k))
    )


@pytest.mark.parametrize("name", EVERY)
def test_slopes_agree_with_finite_differences(name: str) -> None:
    g = torch.tensor([[0.9, -0.4, 0.35, -2.0], [0.1, 0.2, -1.3, 1.7]], dtype=torch.float64)
    loss = functools.partial(_loss_of, name)
    assert torch.autograd.gradcheck(loss, g.requires_grad_())


def _loss_of(name: str, g: torch.Tensor) -> torch.Tensor:
    return LOSSES[name](scores(g, k=g.shape[1]))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_rewards_give_finite_losses_and_slopes(name: str, sign: float) -> None:
    g = (sign * torch.tensor([[1e4, -1e4]])).requires_grad_()
    loss = LOSSES[name](scores(g, k=2, dtype=torch.float32))
    loss.sum().backward()
    assert loss.isfinite().all() and g.grad.isfinite().all()
    assert (loss.item() < 1.0) == (sign > 0) or name == "bt_soft"
