"""Losses over ranked groups of candidates: one number per candidate in, one per group out.

Every loss sees only ``Scores``: padded (b, k) tensors whose columns are in rank order, best
first. For losses with a reference, ``g`` is the implicit reward β·Δ with
Δ = log π(y|x) - log π_ref(y|x); for Bradley-Terry losses it is an explicit score s.

    DPO           Rafailov et al., NeurIPS 2023
    RPO           retrieval preference optimisation, ACL 2025: DPO with a term for the context
    LarPO         LLM alignment as retriever preference optimisation, ICML 2025: lists
    Bradley-Terry MART; soft targets from counts are ours
    lambda_dcg    LambdaRank's weights (Burges, 2010) on LarPO's pairs; an extension

With two candidates dpo, larpo_contrastive, larpo_lambdarank, larpo_listmle and bt are the same
number. The forms are softplus and logsumexp: finite for any finite score.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stages.errors import QuarryError


class Scores(NamedTuple):
    """A batch of groups. Padding candidates have mask False; their other values are not read."""

    g: Tensor  # (b, k) reward, best candidate first
    rank: Tensor  # (b, k) int, 0 is best, equal for ties
    mask: Tensor  # (b, k) bool, a candidate is here
    pairs: Tensor  # (b, k, k) bool, [i, j]: i was preferred to j and the pair is used
    length: Tensor | None = None  # (b, k) tokens of the answer: dpo_norm
    score: Tensor | None = None  # (b, k) what the ranks were made of: lambda_dcg
    win: Tensor | None = None  # (b, k, k) P(i is better than j): bt_soft
    kappa: Tensor | None = None  # (b,) mean log-ratio of the context's tokens: rpo_retrieval
    sign: Tensor | None = None  # (b,) +1 use the context, -1 resist it, 0 no matter


def dpo(s: Scores) -> Tensor:
    """-log σ(g_w - g_l), mean over a group's pairs."""
    return _mean(softplus(-_gaps(s.g, s)), s.pairs)


def dpo_norm(s: Scores) -> Tensor:
    """DPO on rewards per token: -log σ(g_w / len_w - g_l / len_l). TRL calls it sigmoid_norm."""
    per_token = s.g / _given(s.length, "length").clamp(min=1)
    return _mean(softplus(-_gaps(per_token, s)), s.pairs)


def rpo_retrieval(s: Scores, *, beta_r: float = 0.1) -> Tensor:
    """-log σ(g_w - g_l + sign·β_R·κ): without a sign or a context it is DPO."""
    shift = beta_r * _given(s.sign, "sign") * _given(s.kappa, "kappa")
    return _mean(softplus(-_gaps(s.g, s) - shift[:, None, None]), s.pairs)


def larpo_contrastive(s: Scores) -> Tensor:
    """-g_1 + log Σ_j exp g_j: the best against all; the first term of listmle."""
    return s.g.masked_fill(~s.mask, -torch.inf).logsumexp(-1) - s.g[:, 0]


def larpo_lambdarank(s: Scores, *, reduce: Literal["sum", "mean_pairs"] = "sum") -> Tensor:
    """-Σ log σ(g_i - g_j) over the pairs; tied candidates make none.

    ``mean_pairs`` divides by their number, to compare with other losses.
    """
    losses = softplus(-_gaps(s.g, s))
    return _mean(losses, s.pairs) if reduce == "mean_pairs" else _sum(losses, s.pairs)


def larpo_listmle(s: Scores) -> Tensor:
    """Σ_i [-g_i + log Σ_{j≥i} exp g_j]: Plackett-Luce on the whole order.

    Raises:
        QuarryError: candidates are tied; the order of a list must be strict.
    """
    if bool(((s.rank[:, 1:] == s.rank[:, :-1]) & s.mask[:, 1:]).any()):
        raise QuarryError(
            "loss larpo_listmle: candidates of a group share a rank, it needs a strict order. "
            "Use larpo_lambdarank, which drops tied pairs."
        )
    k = s.g.shape[1]
    later = torch.ones(k, k, dtype=torch.bool, device=s.g.device).triu() & s.mask[:, None, :]
    later = later | torch.eye(k, dtype=torch.bool, device=s.g.device)  # no empty sum in padding
    rest = s.g[:, None, :].expand(-1, k, -1).masked_fill(~later, -torch.inf).logsumexp(-1)
    return _sum(rest - s.g, s.mask)


def lambda_dcg(s: Scores) -> Tensor:
    """Σ |G_i - G_j|·|1/log2(1+τ_i) - 1/log2(1+τ_j)|·(-log σ(g_i - g_j)), not normalised.

    G = 2^ψ - 1 with ψ the score scaled to [0, 1] within the group; τ is the rank by the current
    g, from 1, without gradient; equal g keep their order.
    """
    score = _given(s.score, "score")
    low = score.masked_fill(~s.mask, torch.inf).amin(-1, keepdim=True)
    high = score.masked_fill(~s.mask, -torch.inf).amax(-1, keepdim=True)
    psi = ((score - low) / (high - low).clamp(min=torch.finfo(score.dtype).tiny)).clamp(0, 1)
    gain = 2**psi - 1
    order = s.g.detach().masked_fill(~s.mask, -torch.inf).sort(descending=True, stable=True)[1]
    discount = 1 / torch.log2(order.argsort(-1).to(s.g.dtype) + 2)  # τ = place + 1
    weight = _differences(gain).abs() * _differences(discount).abs()
    return _sum(weight * softplus(-_gaps(s.g, s)), s.pairs)


def bt(s: Scores, *, centre: float = 0.0) -> Tensor:
    """-log σ(s_i - s_j) + centre·(s_i + s_j)², mean over a group's pairs; no reference."""
    drift = (s.g[:, :, None] + s.g[:, None, :]) ** 2
    return _mean(softplus(-_gaps(s.g, s)) + centre * drift, s.pairs)


def bt_soft(s: Scores) -> Tensor:
    """-q log σ(d) - (1 - q) log σ(-d) with q = P(i is better than j), mean over the pairs."""
    d, q = _gaps(s.g, s), _given(s.win, "win")
    return _mean(q * softplus(-d) + (1 - q) * softplus(d), s.pairs)


Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "dpo": dpo,
    "dpo_norm": dpo_norm,
    "rar2": dpo,  # on the union of its kinds, which the groups' weights balance
    "rpo_retrieval": rpo_retrieval,
    "larpo_contrastive": larpo_contrastive,
    "larpo_lambdarank": larpo_lambdarank,
    "larpo_listmle": larpo_listmle,
    "lambda_dcg": lambda_dcg,
    "bt": bt,
    "bt_soft": bt_soft,
}
WITHOUT_REFERENCE = frozenset({"bt", "bt_soft"})


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Σ w·loss / Σ w over groups."""
    return (weight * losses).sum() / weight.sum()


def _differences(x: Tensor) -> Tensor:
    return x[:, :, None] - x[:, None, :]  # (b, k, k)


def _gaps(g: Tensor, s: Scores) -> Tensor:
    """g_i - g_j where the pair is used, else 0: what lies in the padding makes no NaN."""
    return _differences(g).masked_fill(~s.pairs, 0.0)


def _sum(values: Tensor, where: Tensor) -> Tensor:
    return values.masked_fill(~where, 0.0).flatten(1).sum(-1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return _sum(values, where) / where.flatten(1).sum(-1).clamp(min=1)


def _given(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise QuarryError(f"preference loss: the groups give no '{name}', which this loss needs.")
    return value
