"""Every preference loss on numbers worked out by hand (float64)."""

from collections.abc import Callable
from math import e, log

import pytest
import torch

from stages.errors import QuarryError
from stages.preference import preferred
from stages.preference_losses import (
    LOSSES,
    WITHOUT_REFERENCE,
    Scores,
    bt,
    bt_soft,
    dpo,
    dpo_norm,
    lambda_dcg,
    larpo_contrastive,
    larpo_lambdarank,
    larpo_listmle,
    rpo_retrieval,
    weighted_mean,
)

CLOSE = {"rel": 0, "abs": 1e-6}


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scores(g: torch.Tensor, *, pairs: str = "all", rank: list[int] | None = None) -> Scores:
    """One group without padding; the upper half of the ranks is labelled chosen."""
    k = g.shape[-1]
    rank = rank or list(range(k))
    label = [1 if i < k / 2 else -1 for i in range(k)]
    used = torch.zeros(1, k, k, dtype=torch.bool)
    for i, j in preferred(rank, label, pairs):
        used[0, i, j] = True
    return Scores(g.reshape(1, k), torch.tensor([rank]), torch.ones(1, k, dtype=torch.bool), used)


# Four candidates: policy (-12,-15,-14,-20), reference (-13,-14,-14.5,-18), scores 2, .3, 1.1, -.5
DELTA = f64(-12 + 13, -14 + 14.5, -15 + 14, -20 + 18)  # in rank order
SCORE = f64(2.0, 1.1, 0.3, -0.5).reshape(1, 4)


@pytest.mark.parametrize(
    ("loss", "pairs", "at_tenth", "at_one", "at_start"),
    [
        (dpo, "best_worst", 0.5543552445, 0.0485873516, log(2)),
        (larpo_contrastive, "all", 1.2558377788, 0.5831386637, log(4)),
        (larpo_lambdarank, "all", 3.6622468896, 1.2431570466, 6 * log(2)),
        (larpo_lambdarank, "cross", 2.3493905815, 0.4558183749, 4 * log(2)),
        (larpo_listmle, "all", 2.8708272627, 1.1627682511, log(4 * 3 * 2)),
    ],
)
def test_a_list_of_four_at_two_betas_and_at_policy_equal_to_reference(
    loss: Callable, pairs: str, at_tenth: float, at_one: float, at_start: float
) -> None:
    assert loss(scores(0.1 * DELTA, pairs=pairs)).item() == pytest.approx(at_tenth, **CLOSE)
    assert loss(scores(1.0 * DELTA, pairs=pairs)).item() == pytest.approx(at_one, **CLOSE)
    assert loss(scores(0.0 * DELTA, pairs=pairs)).item() == pytest.approx(at_start, **CLOSE)


@pytest.mark.parametrize(
    ("ratios", "beta", "loss", "gradient"),
    [
        ((2.0, -1.0), 0.2, 0.437488, -0.070869),
        ((2.0, -1.0), 0.1, 0.554355, None),
        ((0.0, 0.0), 0.2, log(2), -0.1),
    ],
)
def test_dpo_of_a_thought_that_helped_and_one_that_did_not(ratios, beta, loss, gradient) -> None:
    """RAR2's check 2: log-ratios -40 + 42 and -55 + 54; the gradient by their difference."""
    difference = f64(*ratios).requires_grad_()
    found = dpo(scores(beta * difference, pairs="best_worst"))
    found.sum().backward()
    assert found.item() == pytest.approx(loss, **CLOSE)
    if gradient is not None:
        assert difference.grad.tolist() == pytest.approx([gradient, -gradient], **CLOSE)


def test_lambdarank_by_mean_divides_by_its_six_pairs() -> None:
    mean = larpo_lambdarank(scores(0.1 * DELTA), reduce="mean_pairs")
    assert mean.item() == pytest.approx(3.6622468896 / 6, **CLOSE)


def test_lambda_dcg_weighs_pairs_by_what_a_swap_would_cost() -> None:
    for beta, expected in ((0.1, 0.7500637485), (1.0, 0.1750322586)):
        s = scores(beta * DELTA)._replace(score=SCORE)
        assert lambda_dcg(s).item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (larpo_contrastive, (-0.715163, 0.270945, 0.233205, 0.211013)),
        (larpo_lambdarank, (-1.363226, -0.412891, 0.437715, 1.338402)),
        (larpo_listmle, (-0.715163, -0.350196, 0.084271, 0.981089)),
    ],
)
def test_gradients_of_the_lists_sum_to_zero(loss: Callable, expected: tuple[float, ...]) -> None:
    g = (0.1 * DELTA).requires_grad_()
    loss(scores(g)).sum().backward()
    assert g.grad.tolist() == pytest.approx(expected, **CLOSE)
    assert g.grad.sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("sign", "expected"), [(0, 0.6209570478), (1, 0.6117553389), (-1, 0.6302581947)]
)
def test_rpo_moves_the_margin_by_the_contexts_mean_log_ratio(sign: int, expected: float) -> None:
    g = 0.1 * f64(-6 + 7, -9 + 8.5)
    s = scores(g)._replace(sign=f64(sign), kappa=f64((-120 + 130) / 50))
    assert rpo_retrieval(s, beta_r=0.1).item() == pytest.approx(expected, **CLOSE)
    assert dpo(s).item() == pytest.approx(0.6209570478, **CLOSE)
    assert rpo_retrieval(s, beta_r=0.0).item() == pytest.approx(0.6209570478, **CLOSE)


def test_dpo_per_token_divides_each_reward_by_its_length() -> None:
    s = scores(0.1 * f64(1, -0.5))._replace(length=f64(4, 6).reshape(1, 2))
    margin = 0.1 * (1 / 4 - -0.5 / 6)
    assert dpo_norm(s).item() == pytest.approx(log(1 + e**-margin), **CLOSE)
    assert dpo_norm(s).item() == pytest.approx(0.6766193964, **CLOSE)


def test_bradley_terry_plain_centred_and_soft() -> None:
    s = scores(f64(1.2, 0.3))
    assert bt(s).item() == pytest.approx(0.3411538747, **CLOSE)
    assert bt(s, centre=0.01).item() == pytest.approx(0.3411538747 + 0.01 * 1.5**2, **CLOSE)
    for q, expected in ((0.95, 0.3861538747), (0.8, 0.5211538747), (1.0, 0.3411538747)):
        soft = s._replace(win=torch.full((1, 2, 2), q, dtype=torch.float64))
        assert bt_soft(soft).item() == pytest.approx(expected, **CLOSE)


def test_two_kinds_mix_by_their_weights() -> None:
    thought = dpo(scores(0.1 * f64(-20 + 21, -25 + 24)))
    answer = dpo(scores(0.1 * f64(-30 + 33, -28 + 27)))
    assert thought.item() == pytest.approx(0.5981388694, **CLOSE)
    assert answer.item() == pytest.approx(0.5130152524, **CLOSE)
    both = torch.cat([thought, answer])
    assert weighted_mean(both, f64(1, 1)).item() == pytest.approx(0.5555770609, **CLOSE)
    assert weighted_mean(both, f64(0, 2)).item() == pytest.approx(0.5130152524, **CLOSE)


def test_with_two_candidates_all_losses_are_one_number() -> None:
    s = scores(f64(0.7, -0.4))
    for loss in (bt, larpo_contrastive, larpo_lambdarank, larpo_listmle):
        assert loss(s).item() == pytest.approx(dpo(s).item(), abs=1e-12)


def test_contrastive_is_the_first_term_of_listmle() -> None:
    g = f64(0.3, 0.9, -1.0)
    rest = larpo_listmle(scores(g)).item() - larpo_listmle(scores(g[1:])).item()
    assert larpo_contrastive(scores(g)).item() == pytest.approx(rest, abs=1e-12)


def test_tied_candidates_make_no_pair_and_no_list() -> None:
    tied = scores(f64(0.2, 0.1, -0.5), rank=[0, 0, 1])
    expected = log(1 + e ** -(0.2 + 0.5)) + log(1 + e ** -(0.1 + 0.5))
    assert larpo_lambdarank(tied).item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(QuarryError, match="share a rank"):
        larpo_listmle(tied)


def test_a_loss_says_what_its_groups_lack() -> None:
    with pytest.raises(QuarryError, match="'length'"):
        dpo_norm(scores(f64(1, 0)))


def test_only_bradley_terry_goes_without_a_reference() -> None:
    assert set(LOSSES) > WITHOUT_REFERENCE == {"bt", "bt_soft"}
