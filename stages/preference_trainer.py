"""The preference trainer: groups of candidates in, a language model that prefers the best out.

A group is read in one pass: its prompt and context once, then every candidate, which sees the
prompt and itself and nothing of its siblings (block mask, restarted positions). Several groups
may share a pack of up to ``tokens`` tokens; nothing is padded, and logits are made only where a
scored token is predicted. For a prompt of 200 tokens and four answers of 8 that is
4·208 / (200 + 4·8) = 3.6 times less to compute than a row per answer.

Passes go side by side (``stages.lanes``), as many as ``threads`` says; gradients are added up in
one order.

Prompt, context and candidate are tokenised apart; a candidate ends with the end-of-text token,
which is scored. Nothing is dropped out. The reference is the model before training: its
log-probabilities are computed once per group, alone, and kept in the record store.

Equal inputs train to equal bytes, also when training was killed and goes on from a checkpoint.
Several processes (``stages.ranks``) train as one does, up to the rounding of sums.
"""

import functools
import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from stages.checkpoint import resume, save
from stages.digest import digest
from stages.errors import QuarryError
from stages.lanes import open_lanes
from stages.preference import Group, Pairing, preferred, win_probability
from stages.preference_losses import Scores, weighted_mean
from stages.ranks import ALONE, Ranks
from stages.records import RecordStore

log = logging.getLogger(__name__)

VERSION = "2"  # of what a log-probability and a step are; part of every key
CLIP = 1.0  # largest gradient norm of a step
SAVE_EVERY = 10  # steps between checkpoints
TIE = 1e-4  # rewards closer than this are equal: log-probabilities differ that much by batch


class Encoded(NamedTuple):
    """A group as token ids: one prompt, the context inside it, the candidates after it."""

    group: Group
    prompt: list[int]
    context: list[int]
    answers: list[list[int]]  # each with the end-of-text token

    @property
    def size(self) -> int:
        """Tokens of one pass over the group."""
        return len(self.prompt) + len(self.context) + sum(map(len, self.answers))


class LogProbs(NamedTuple):
    """Summed log-probabilities of a group: of its context, and of each answer."""

    context: Tensor  # ()
    answers: Tensor  # (k,)


def encode(
    groups: Sequence[Group], tokenizer: Tokenizer, *, eos: int, max_tokens: int
) -> list[Encoded]:
    """Groups as tokens, without those of which a candidate would not fit into ``max_tokens``."""

    def ids(texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=special)]

    prompts = ids([g.prompt for g in groups], special=True)
    contexts = ids([g.context for g in groups], special=False)
    encoded = []
    for group, prompt, context in zip(groups, prompts, contexts, strict=True):
        answers = [[*a, eos] for a in ids([c.text for c in group.candidates], special=False)]
        if len(prompt) + len(context) + max(map(len, answers)) <= max_tokens:
            encoded.append(Encoded(group, prompt or [eos], context, answers))
    return encoded


def log_probs(model: nn.Module, groups: Sequence[Encoded]) -> list[LogProbs]:
    """The log-probabilities of whole groups, from one pass over one packed row."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int, int]] = []  # per token: its group, its answer or -1, its position
    source: list[int] = []  # where each scored token is predicted from
    target: list[int] = []
    bucket: list[int] = []  # which sum it belongs to
    buckets = 0
    for n, e in enumerate(groups):
        start, stem = len(ids), e.prompt + e.context
        ids += stem
        positions += range(len(stem))
        spans += [(n, -1, p) for p in range(len(stem))]
        source += range(start + len(e.prompt) - 1, start + len(stem) - 1)
        target += e.context
        bucket += [buckets] * len(e.context)
        for k, answer in enumerate(e.answers):
            source += [start + len(stem) - 1, *range(len(ids), len(ids) + len(answer) - 1)]
            target += answer
            bucket += [buckets + 1 + k] * len(answer)
            ids += answer
            positions += range(len(stem), len(stem) + len(answer))
            spans += [(n, k, len(stem) + p) for p in range(len(answer))]
        buckets += 1 + len(e.answers)

    device = next(model.parameters()).device
    logits = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=_mask(torch.tensor(spans, device=device))[None, None],
        logits_to_keep=torch.tensor(source, device=device),
        use_cache=False,
    ).logits[0].float()  # (scored, vocabulary)  # fmt: skip
    chosen = logits.gather(1, torch.tensor(target, device=device)[:, None])[:, 0]
    sums = logits.new_zeros(buckets).index_add(
        0, torch.tensor(bucket, device=device), chosen - logits.logsumexp(-1)
    )
    parts = sums.split([1 + len(e.answers) for e in groups])
    return [LogProbs(part[0], part[1:]) for part in parts]


def _mask(spans: Tensor) -> Tensor:
    """(t, t) added to attention: 0 where a token sees another, else the smallest float."""
    group, answer, position = spans.T
    same = group[:, None] == group
    sibling = (answer >= 0) & (answer[:, None] != answer)
    sees = same & ~sibling & (position <= position[:, None])
    return torch.zeros(sees.shape, device=spans.device).masked_fill(~sees, torch.finfo().min)


def reference_log_probs(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    fingerprint: str,
    store: RecordStore,
    threads: int = 1,
) -> list[LogProbs]:
    """What the untrained model says, each group in a pass alone, from the record store if known.

    The key holds the model's fingerprint (weights, tokenizer) and the token ids: another template,
    tokenizer or weight is another key.
    """
    keys = [
        digest("ref_logps", VERSION, fingerprint, torch.__version__,
               json.dumps([e.prompt, e.context, e.answers]))
        for e in encoded
    ]  # fmt: skip

    model.eval()

    def read(e: Encoded) -> bytes:
        with torch.inference_mode():
            (logps,) = log_probs(model, [e])
        values = [logps.context.item(), *logps.answers.tolist()]
        return struct.pack(f"<{len(values)}d", *values)

    with open_lanes(threads) as lanes:
        records = store.compute(
            keys, encoded, lambda batch: list(lanes.map(read, batch)), batch=8, unit="group"
        )
    rows = [torch.tensor(struct.unpack(f"<{len(r) // 8}d", r)) for r in records]
    return [LogProbs(row[0], row[1:]) for row in rows]


class Item(NamedTuple):
    """A group ready to train on: its tokens, and what the reference model says of them."""

    encoded: Encoded
    reference: LogProbs


class Goal(NamedTuple):
    """What is minimised."""

    loss: Callable[[Scores], Tensor]  # of preference_losses, its options bound
    beta: float
    reference: bool  # g = β·(log π - log π_ref), or β·log π alone
    pairing: Pairing


def pack(items: Sequence[Item], tokens: int) -> Iterator[list[Item]]:
    """Items that go through the model together: up to ``tokens``, or one alone that is longer."""
    part: list[Item] = []
    for item in items:
        if part and sum(i.encoded.size for i in part) + item.encoded.size > tokens:
            yield part
            part = []
        part.append(item)
    if part:
        yield part


def build_scores(items: Sequence[Item], logps: Sequence[LogProbs], goal: Goal) -> Scores:
    """What the losses see of these groups: padded tensors, candidates in rank order."""
    b, k = len(items), max(len(i.encoded.answers) for i in items)
    device = logps[0].answers.device
    g, length, score, kappa, sign = (
        torch.zeros(shape, device=device) for shape in ((b, k), (b, k), (b, k), b, b)
    )
    rank = torch.zeros(b, k, dtype=torch.long, device=device)
    mask = torch.zeros(b, k, dtype=torch.bool, device=device)
    pairs = torch.zeros(b, k, k, dtype=torch.bool, device=device)
    win = torch.zeros(b, k, k, device=device)
    for n, (item, own) in enumerate(zip(items, logps, strict=True)):
        e, reference = item.encoded, item.reference
        cs = e.group.candidates
        here = slice(len(cs))
        base = reference.answers.to(device) if goal.reference else 0.0
        g[n, here] = goal.beta * (own.answers - base)
        length[n, here] = torch.tensor([float(len(a)) for a in e.answers], device=device)
        score[n, here] = torch.tensor([c.score for c in cs], device=device)
        rank[n, here] = torch.tensor([c.rank for c in cs], device=device)
        mask[n, here] = True
        for i, j in preferred([c.rank for c in cs], [c.label for c in cs], goal.pairing):
            pairs[n, i, j] = True
            counts = cs[i].n_success, cs[i].n_trials, cs[j].n_success, cs[j].n_trials
            win[n, i, j] = win_probability(*counts)
        if e.context:
            kappa[n] = (own.context - reference.context.to(device)) / len(e.context)
        sign[n] = e.group.sign
    return Scores(g, rank, mask, pairs, length, score, win, kappa, sign)


def train(
    model: nn.Module,
    items: Sequence[Item],
    goal: Goal,
    *,
    steps: int,
    batch: int,
    tokens: int,
    lr: float,
    warmup: float,
    seed: int,
    threads: int = 1,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Move the model's trainable parameters ``steps`` times; what it cost.

    A step reads ``batch`` groups, pack by pack, ``threads`` packs side by side, and divides by
    the weight of all of them: the packs' sizes do not matter. AdamW without decay; the rate rises
    over the first ``warmup`` share of the steps and falls to 0 linearly. Groups of weight 0 are
    not looked at. Training goes on from ``checkpoint`` where that was written by the same
    training. Each of ``ranks`` reads its share of a step's groups; the first keeps the checkpoint.
    """
    items = [i for i in items if i.encoded.group.weight > 0]
    if not items:
        raise QuarryError("preference training: no group of weight above 0 in split train.")
    model.eval()  # no dropout, here and in the reference
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
    first = resume(checkpoint, trained, optimiser)
    stream = _order(items, seed=seed, skip=first * batch)
    read = 0
    with (
        open_lanes(threads) as lanes,
        tqdm(total=steps, initial=first, unit="step", disable=None, delay=2) as bar,
    ):
        for step in range(first, steps):
            chosen = [next(stream) for _ in range(batch)]
            weight = sum(i.encoded.group.weight for i in chosen)
            learn = functools.partial(_learn, model, [*trained.values()], goal, tokens, weight)
            own = sorted(ranks.share(chosen), key=lambda i: i.encoded.size)
            parts = [*lanes.map(learn, (own[lane::threads] for lane in range(threads)))]
            for i, p in enumerate(trained.values()):
                p.grad = functools.reduce(torch.add, (part.gradient[i] for part in parts))
            sums = torch.tensor([(part.loss, part.tokens) for part in parts]).sum(0)
            ranks.add_up([sums, *(p.grad for p in trained.values())])
            total = sums[0].item()
            read += round(sums[1].item())
            log.debug("step %d: loss %.9g", step, total)
            nn.utils.clip_grad_norm_(trained.values(), CLIP)
            for group in optimiser.param_groups:
                group["lr"] = lr * _schedule(step, steps, warmup)
            optimiser.step()
            bar.set_postfix(loss=f"{total:.3f}", refresh=False)
            bar.update()
            due = (step + 1) % SAVE_EVERY == 0 or step + 1 == steps
            if checkpoint and due and ranks.rank == 0:
                save(checkpoint, step + 1, trained, optimiser)
    return {"trained_tokens": read, "trained_steps": steps - first}


class Learnt(NamedTuple):
    """Of a part of a step's groups."""

    loss: float
    tokens: int
    gradient: list[Tensor]  # one per trained parameter


def _learn(
    model: nn.Module,
    trained: Sequence[nn.Parameter],
    goal: Goal,
    tokens: int,
    weight: float,
    items: Sequence[Item],
) -> Learnt:
    """Loss and gradient of these groups, as parts of a step of this weight."""
    total, seen, gradient = 0.0, 0, [torch.zeros_like(p) for p in trained]
    for part in pack(items, tokens):
        logps = log_probs(model, [i.encoded for i in part])
        losses = goal.loss(build_scores(part, logps, goal))
        weights = losses.new_tensor([i.encoded.group.weight for i in part])
        loss = (weights * losses).sum() / weight
        for whole, own in zip(gradient, torch.autograd.grad(loss, trained), strict=True):
            whole += own
        total += loss.item()
        seen += sum(i.encoded.size for i in part)
    return Learnt(total, seen, gradient)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step, from 0."""
    rise = max(1, round(steps * warmup))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def _order(items: Sequence[Item], *, seed: int, skip: int) -> Iterator[Item]:
    """All groups, again and again, each epoch in an order of its own; without the first."""
    epoch, skip = skip // len(items), skip % len(items)
    while True:
        key = {id(i): digest(str(seed), str(epoch), i.encoded.group.group_id) for i in items}
        yield from sorted(items, key=lambda i: key[id(i)])[skip:]
        epoch, skip = epoch + 1, 0


def measure(
    model: nn.Module, items: Sequence[Item], goal: Goal, *, tokens: int, threads: int = 1
) -> dict[str, Any]:
    """How the model ranks these groups' pairs.

    accuracy: share of pairs with g_chosen > g_rejected + TIE; margin: mean g_chosen - g_rejected;
    chosen, rejected: mean log π/π_ref; kl: mean -log π/π_ref of the model's own samples, which
    estimates KL(π_ref || π). Rounded to what a batch shape cannot change.
    """
    if not items:
        return {"groups": 0}
    model.eval()
    gaps, chosen, rejected, own, losses, weights = [], [], [], [], [], []

    def read(part: Sequence[Item]) -> list[LogProbs]:
        with torch.inference_mode():
            return log_probs(model, [i.encoded for i in part])

    parts = [*pack(items, tokens)]
    with open_lanes(threads) as lanes, torch.inference_mode():
        for part, logps in zip(parts, lanes.map(read, parts), strict=True):
            s = build_scores(part, logps, goal)
            losses += goal.loss(s).tolist()
            weights += [i.encoded.group.weight for i in part]
            for n, (item, logp) in enumerate(zip(part, logps, strict=True)):
                delta = (logp.answers.cpu() - item.reference.answers).tolist()
                for i, j in s.pairs[n].nonzero().tolist():
                    gaps.append((s.g[n, i] - s.g[n, j]).item())
                    chosen.append(delta[i])
                    rejected.append(delta[j])
                cs = item.encoded.group.candidates
                own += [-d for d, c in zip(delta, cs, strict=True) if c.sampled]
    loss = weighted_mean(torch.tensor(losses), torch.tensor(weights)).item()
    return {
        "groups": len(items), "pairs": len(gaps), "loss": round(loss, 3),
        "accuracy": round(_mean([float(gap > TIE) for gap in gaps]), 3),
        "margin": round(_mean(gaps), 3), "chosen": round(_mean(chosen), 2),
        "rejected": round(_mean(rejected), 2), "kl": round(_mean(own), 2),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
