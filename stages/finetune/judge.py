"""The R-Feedback judge of RFM-RAG: a cross-encoder that says when the evidence is complete.

Li et al., arXiv:2508.17862, train a model to judge the pool; how could not be read. Ours:

    data      pools of the loop itself and pools made from gold support (pairs/sufficiency)
    loss      weighted binary cross-entropy; an insufficient pool counts ``w_neg`` times, since a
              false stop costs more than a round
    stop      the epoch of best AUC on dev; training ends where an epoch is worse than one before
    scores    temperature scaling on dev (``calibration``)
    tau       the threshold of largest utility on dev: F1 where it stops - price x rounds

Half of the training pools are read without their numbers (``numbers_dropped``): where coverage
tells everything, a judge would not learn to read; where it is not known, that is what it needs.

``training.json`` has all of it under ``calibration``: the same measures for the net before
training and after, with intervals over questions. Dropout and batches are drawn from the seed and
the step: a training that was killed goes on from its checkpoint and ends with equal bytes.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from stages import checkpoint
from stages import judge as judges
from stages.digest import digest, uniform
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune import calibration as cal
from stages.finetune.judge_pools import Pool, encode_pools, labelled, measure, read_pools
from stages.judge import Encoded, JudgeNet, Reader
from stages.models import read_training, write_training
from stages.params import Entry

log = logging.getLogger(__name__)

VERSION = "1"  # of what a step is; part of every checkpoint's name
SAVE_EVERY = 20  # steps between checkpoints


class Params(Entry):
    """Values of a ``judge`` entry."""

    recipe: Literal["judge"]
    corpus: Literal["none"]
    pairs: str  # an entry of pairs, recipe sufficiency
    index: Literal["none"]
    encoder: Literal["none"]
    model: str  # the BERT encoder to start from
    epochs: PositiveInt = 3  # at the most
    batch: PositiveInt = 32  # pools of a step
    lr: PositiveFloat = 2e-5  # peak learning rate of the encoder; it falls to 0 linearly
    head_lr: PositiveFloat = 1e-3
    warmup: NonNegativeFloat = Field(default=0.1, le=1)  # share of the steps
    w_neg: PositiveFloat = 2.0  # weight of an insufficient pool
    max_tokens: int = Field(default=512, ge=16)  # of question and evidence
    numbers_dropped: float = Field(default=0.5, ge=0, le=1)  # share of training pools
    price: NonNegativeFloat = 0.05  # c, of a round, in F1
    seed: int
    threads: PositiveInt = 1


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the trained judge; seconds and pools per second.

    Raises:
        QuarryError: an input is not what it must be, or there is no pool of both labels to train
            on or to choose on.
    """
    torch.set_num_threads(params.threads)
    made = read_training(inputs.model, "dense")
    pools = read_pools(inputs.pairs)
    learn = [p for p in pools if p.split == "train" and p.label]
    dev = [p for p in pools if p.split == "dev"]
    for name, some in (("train", learn), ("dev", dev)):
        if len({p.label for p in some if p.label}) < 2:
            raise QuarryError(
                f"finetune: pairs '{params.pairs}' has not sufficient and insufficient pools in "
                f"split {name}. Make it from a run of more questions."
            )
    config = json.loads((inputs.model / "config.json").read_text(encoding="utf-8"))
    longest = min(params.max_tokens, config["max_position_embeddings"])
    reader = Reader(inputs.model, longest)
    net = judges.open_net(inputs.model, seed=params.seed)
    how = {"price": params.price, "seed": params.seed}
    before = measure(net, reader, dev, fit=False, **how)
    log.info("%d pools to train on, %d on dev", len(learn), len(dev))

    began = time.perf_counter()
    encoded = reader.encode([(p.question, drop_numbers(p, params)) for p in learn])
    key = digest(
        "judge", VERSION, judges.VERSION, torch.__version__, made["fingerprint"],
        params.model_dump_json(exclude={"pairs", "model", "price"}), repr(pools),
    )  # fmt: skip
    saved = checkpoint.CHECKPOINTS / f"{key}.safetensors"
    aucs = fit(net, encoded, [p.label for p in learn], reader, dev, params, saved)
    seconds = time.perf_counter() - began
    after = measure(net, reader, dev, fit=True, **how)
    log.info("dev AUC %s -> %s, tau %s", before["auc"], after["auc"], after["tau"])

    judges.save_net(net, out)
    for path in sorted(inputs.model.iterdir()):
        if path.name.startswith(("tokenizer", "vocab", "special_tokens")):
            shutil.copyfile(path, out / path.name)
    write_training(
        out, "judge", **(params.model_dump(mode="json") | {"max_tokens": longest}),
        base=made["fingerprint"], pools=len(learn), dev_auc_by_epoch=aucs,
        calibration={k: after.pop(k) for k in ("temperature", "tau", "curve")}
        | {"price": params.price, "before": before, "after": after},
    )  # fmt: skip
    for path in (saved, _best(saved)):
        path.unlink(missing_ok=True)
    steps = len(aucs) * math.ceil(len(learn) / params.batch)
    return {
        "train_seconds": round(seconds, 2), "steps": steps,
        "pools_per_second": round(steps * params.batch / seconds, 1),
    }  # fmt: skip


def drop_numbers(pool: Pool, params: Params) -> str:
    """The pool's text, for a share of pools without its numbers."""
    drawn = uniform("numbers", str(params.seed), pool.qid, pool.text)
    return judges.without_features(pool.text) if drawn < params.numbers_dropped else pool.text


# -- training ---------------------------------------------------------------------------------


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, w_neg: float) -> torch.Tensor:
    """Binary cross-entropy of logits (b,) and labels (b,) of 1 and 0, as ``cal.weighted_bce``."""
    weights = torch.where(labels > 0, 1.0, w_neg)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (weights * losses).sum() / weights.sum()


def fit(
    net: JudgeNet, encoded: Sequence[Encoded], labels: Sequence[int], reader: Reader,
    dev: Sequence[Pool], params: Params, saved: Path,
) -> list[float]:  # fmt: skip
    """Train ``net``, which ends with the weights of its best epoch; dev AUC by epoch.

    Goes on from ``saved`` and from the best epoch beside it, where they are.
    """
    trained = dict(net.named_parameters())
    head = [p for n, p in trained.items() if n.startswith("head.")]
    body = [p for n, p in trained.items() if not n.startswith("head.")]
    optimiser = torch.optim.AdamW(
        [{"params": body, "lr": params.lr}, {"params": head, "lr": params.head_lr}]
    )
    per_epoch = math.ceil(len(encoded) / params.batch)
    total, peaks = params.epochs * per_epoch, [params.lr, params.head_lr]
    step, aucs = checkpoint.resume(saved, trained, optimiser), _read_aucs(saved)
    with torch.random.fork_rng(devices=[]), tqdm(
        total=total, initial=step, unit="step", disable=None, delay=2
    ) as bar:  # fmt: skip
        for epoch in range(len(aucs), params.epochs):
            if aucs and aucs[-1] < max(aucs):
                break
            batches = list(draw_batches([len(e.ids) for e in encoded], epoch, params))
            for at in range(step - epoch * per_epoch, per_epoch):
                torch.manual_seed(int(digest("step", str(params.seed), str(step))[:15], 16))
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = peak * rate(step, total, params.warmup)
                batch = batches[at]
                net.train()
                width = max(len(encoded[i].ids) for i in batch)
                tensors = judges.to_tensors(
                    [encoded[i] for i in batch], (len(batch), width), reader.pad
                )
                goal = torch.tensor([float(labels[i] > 0) for i in batch])
                loss = weighted_loss(net(*tensors), goal, params.w_neg)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained.values(), 1.0)
                optimiser.step()
                step += 1
                bar.update()
                if step % SAVE_EVERY == 0 or at + 1 == per_epoch:
                    checkpoint.save(saved, step, trained, optimiser)
            net.eval()
            scores = judges.logits(net, encode_pools(reader, dev), reader.pad)
            aucs.append(round(cal.auc(*labelled(scores, dev)), 6))
            log.info("epoch %d: dev AUC %.4f", epoch + 1, aucs[-1])
            _keep_best(saved, net, aucs)
    with safe_open(_best(saved), framework="pt") as f:
        net.load_state_dict({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
    net.eval()
    return aucs


def rate(step: int, total: int, warmup: float) -> float:
    """The share of the peak learning rate: up linearly, then down to 0."""
    n = warmup * total
    return (step + 1) / n if step < n else (total - step) / max(1.0, total - n)


def draw_batches(lengths: Sequence[int], epoch: int, params: Params) -> Iterator[list[int]]:
    """The batches of an epoch: in chance order, within 8 batches by length: less padding."""
    rng = np.random.default_rng([params.seed, epoch])
    order = rng.permutation(len(lengths)).tolist()
    batches = []
    for at in range(0, len(order), 8 * params.batch):
        part = sorted(order[at : at + 8 * params.batch], key=lambda i: (lengths[i], i))
        batches += [part[i : i + params.batch] for i in range(0, len(part), params.batch)]
    yield from (batches[i] for i in rng.permutation(len(batches)))


def _best(saved: Path) -> Path:
    return saved.with_name(f"best-{saved.name}")


def _keep_best(saved: Path, net: JudgeNet, aucs: list[float]) -> None:
    """The weights of the best epoch so far, and the AUCs of all, in one file."""
    path, tmp = _best(saved), saved.with_name(f"best-{saved.name}.tmp")
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    if aucs[-1] < max(aucs) or aucs.index(max(aucs)) < len(aucs) - 1:  # the first of equal ones
        with safe_open(path, framework="pt") as f:
            weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    save_file(weights, tmp, metadata={"aucs": json.dumps(aucs)})
    tmp.replace(path)


def _read_aucs(saved: Path) -> list[float]:
    if not (saved.exists() and _best(saved).exists()):
        return []
    with safe_open(_best(saved), framework="pt") as f:
        return json.loads(f.metadata()["aucs"])
