"""The value head of FREESON: will going on from a prefix reach the answer?

Kim & Kim, FREESON, arXiv 2505.16409. V = sigmoid(w2 · gelu(W1 h)) on the generator's last hidden
state (``stages.value``); the generator stays frozen (the paper may move it; how is not public).
Binary cross-entropy over prefixes of recipe ``paths`` (pairs), two negatives to a positive.

Every (query, prefix) is read once; prefixes of one passage are one reading, since the state of each
is that of its last token. States lie in the record store, a block of groups at a time, so that a
block's last bits never depend on what was there: a killed training goes on and ends with equal
bytes.

``training.json`` gives the AUC on split dev, with intervals over questions, of the head untrained
and trained, and of the model's own likelihood of the prefix: what the search has without a head.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from stages import checkpoint
from stages.digest import digest
from stages.errors import QuarryError
from stages.finetune import Inputs, calibration
from stages.lm import LocalGenerator, open_generator
from stages.models import read_training, write_training
from stages.params import Entry
from stages.prefixes import Ask
from stages.records import RecordStore
from stages.shell import write_json
from stages.tables import read_table
from stages.value import WEIGHTS, Head, fresh_head
from stages.walks import walk_prompt

log = logging.getLogger(__name__)

VERSION = "1"  # of what a step is, and of what is read
BLOCK = 8  # groups that are read together; in the record store one value
SAVE_EVERY = 50  # steps between checkpoints


class Params(Entry):
    """Values of a ``value`` entry."""

    recipe: Literal["value"]
    corpus: Literal["none"]
    pairs: str  # an entry of pairs, recipe paths
    index: Literal["none"]
    encoder: Literal["none"]
    model: str  # the generator that will walk
    hidden: PositiveInt = 256  # rows of W1
    epochs: PositiveInt = 2
    batch: PositiveInt = 64  # prefixes of a step
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    negatives: PositiveFloat = 2.0  # weight of all negatives together, where positives have 1
    seed: int
    threads: PositiveInt = 1


class Samples(NamedTuple):
    """Prefixes of one split: states (n, d), labels (n,) of 1 and 0, likelihoods, questions."""

    states: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float64]
    likelihood: npt.NDArray[np.float64]  # mean log-probability of a token
    qids: list[str]


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the head; seconds of reading and of training.

    Raises:
        QuarryError: the generator is a server, the pairs are another model's tokens or another
            recipe's, or split train has not both labels.
    """
    made = read_training(inputs.model, "generator")
    generator = open_generator(inputs.model, threads=params.threads)
    if not isinstance(generator, LocalGenerator):
        raise QuarryError(
            f"finetune: {params.model} is a server; a value head reads hidden states, which only a "
            f"generator on this machine gives."
        )
    began = time.perf_counter()
    with RecordStore() as store:
        learn, dev = read_samples(generator, inputs.pairs, store)
    read_seconds = time.perf_counter() - began
    if len(set(learn.labels)) < 2:
        raise QuarryError(
            f"finetune: pairs '{params.pairs}' has not positive and negative prefixes in split "
            f"train. Make it with recipe paths, of more questions."
        )
    head = fresh_head(learn.states.shape[1], params.hidden, seed=params.seed)
    standardise(head, learn.states)
    before = measure(head, dev, seed=params.seed)

    began = time.perf_counter()
    key = digest(
        "value", VERSION, torch.__version__, made["fingerprint"],
        params.model_dump_json(exclude={"pairs", "model"}), digest(learn.states.tobytes().hex()),
        str(learn.labels.tolist()),
    )  # fmt: skip
    saved = checkpoint.CHECKPOINTS / f"{key}.safetensors"
    steps = fit(head, learn, params, saved)
    seconds = time.perf_counter() - began
    after = measure(head, dev, seed=params.seed)
    log.info("dev AUC %s -> %s (%d prefixes)", before["auc"], after["auc"], len(dev.labels))

    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, out / WEIGHTS)
    write_json(out / "config.json", {"d": learn.states.shape[1], "hidden": params.hidden})
    shutil.copyfile(inputs.model / "tokenizer.json", out / "tokenizer.json")
    write_training(
        out, "value", **params.model_dump(mode="json"), base=made["fingerprint"],
        prefixes=len(learn.labels), positives=int(learn.labels.sum()),
        dev={"untrained": before, "trained": after,
             "likelihood": _auc(dev.likelihood, dev, seed=params.seed)},
    )  # fmt: skip
    saved.unlink(missing_ok=True)
    return {
        "read_seconds": round(read_seconds, 2), "train_seconds": round(seconds, 2),
        "read_tokens": generator.tokens, "trained_steps": steps,
    }  # fmt: skip


# -- what the model makes of each prefix --------------------------------------------------------


def read_samples(
    generator: LocalGenerator, folder: Path, store: RecordStore
) -> tuple[Samples, Samples]:
    """The prefixes of splits train and dev."""
    groups = read_table(folder, "pref_groups").to_pylist()
    labels: dict[str, dict[str, int]] = {}
    for row in read_table(folder, "pref_candidates").to_pylist():
        labels.setdefault(row["group_id"], {})[row["cand_id"]] = row["label"]
    tokenizer = generator.reads_prefixes().tokenizer
    found: dict[str, list[tuple]] = {"train": [], "dev": []}
    for split, rows in found.items():
        own = [g for g in groups if g["split"] == split]
        for at in range(0, len(own), BLOCK):
            block = [_tokens_of(g, tokenizer) for g in own[at : at + BLOCK]]
            states, likelihood = read_block(generator, block, store)
            for g, (_, tokens) in zip(own[at : at + BLOCK], block, strict=True):
                for cand_id, ids in tokens.items():
                    here = (g["group_id"], cand_id)
                    value = float(labels[g["group_id"]][cand_id] > 0)
                    rows.append((states[here], value, likelihood[here] / len(ids), g["qid"]))
    return _samples(found["train"]), _samples(found["dev"])


def _tokens_of(group: dict[str, Any], tokenizer: str) -> tuple[dict[str, Any], dict[str, list]]:
    meta = json.loads(group["meta"])
    if meta.get("tokenizer") != tokenizer:
        raise QuarryError(
            "finetune: these pairs are not prefixes of recipe paths in the generator's own tokens. "
            "Name pairs that were made with this generator and its index of kind suffixes."
        )
    return group, meta["tokens"]


def _samples(rows: Sequence[tuple]) -> Samples:
    states, labels, likelihood, qids = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Samples(
        np.array(states, np.float32).reshape(len(rows), -1), np.array(labels, np.float64),
        np.array(likelihood, np.float64), list(qids),
    )  # fmt: skip


def read_block(
    generator: LocalGenerator, block: Sequence[tuple[dict[str, Any], dict[str, list]]],
    store: RecordStore,
) -> tuple[dict[tuple[str, str], npt.NDArray], dict[tuple[str, str], float]]:  # fmt: skip
    """(state (d,), log-probability) of every prefix of some groups, by (group, candidate)."""
    names = [(g["group_id"], cand) for g, tokens in block for cand in tokens]
    key = digest(
        "prefix states", VERSION, torch.__version__, generator.fingerprint,
        str(torch.get_num_threads()), *(walk_prompt(g["prompt"]) for g, _ in block),
        str([list(tokens.items()) for _, tokens in block]),
    )  # fmt: skip
    kept = store.get_many([key]).get(key)
    if kept is None:
        kept = _read(generator, block).tobytes()
        store.put_many({key: kept})
    rows = np.frombuffer(kept, np.float32).reshape(len(names), -1)
    return (
        {name: row[:-1] for name, row in zip(names, rows, strict=True)},
        {name: float(row[-1]) for name, row in zip(names, rows, strict=True)},
    )


def _read(
    generator: LocalGenerator, block: Sequence[tuple[dict[str, Any], dict[str, list]]]
) -> npt.NDArray[np.float32]:
    """(prefixes, d + 1): the state and, last, the log-probability of each."""
    reader = generator.reads_prefixes()  # a fresh one: what it read before would show in last bits
    longest = max(len(ids) for _, tokens in block for ids in tokens.values())
    prompts = reader.open([walk_prompt(g["prompt"]) for g, _ in block], room=longest)
    asks, owners = [], []
    for prompt, (_, tokens) in zip(prompts, block, strict=True):
        for ids in whole_readings([tuple(ids) for ids in tokens.values()]):
            owners.append((prompt, ids))
            asks.append(Ask(prompt, (), ids))
    found: dict[tuple[int, tuple[int, ...]], npt.NDArray[np.float32]] = {}
    for (prompt, ids), read in zip(owners, reader.read(asks, keep=False), strict=True):
        sums = np.cumsum([prompt.logps[ids[0]], *read.own])
        for n in range(1, len(ids) + 1):
            found[id(prompt), ids[:n]] = np.r_[read.hidden[n - 1], np.float32(sums[n - 1])]
    return np.stack([
        found[id(prompt), tuple(ids)]
        for prompt, (_, tokens) in zip(prompts, block, strict=True)
        for ids in tokens.values()
    ]).astype(np.float32)  # fmt: skip


def whole_readings(prefixes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that begin no other one: reading them reads all."""
    ordered = sorted(set(prefixes))
    behind = [*ordered[1:], ()]
    return [p for p, q in zip(ordered, behind, strict=True) if q[: len(p)] != p]


# -- training -------------------------------------------------------------------------------------


def standardise(head: Head, states: npt.NDArray[np.float32]) -> None:
    """Give the head the mean and deviation of what it is trained on."""
    with torch.no_grad():
        head.mean.copy_(torch.from_numpy(states.mean(0, dtype=np.float64)))
        head.deviation.copy_(torch.from_numpy(states.std(0, dtype=np.float64) + 1e-6))


def fit(head: Head, samples: Samples, params: Params, saved: Path) -> int:
    """Train the head; the number of steps that were taken here. Goes on from ``saved``."""
    states, labels = torch.from_numpy(samples.states), torch.from_numpy(samples.labels).float()
    n_good = float(labels.sum())
    negative = params.negatives * n_good / (len(labels) - n_good)  # pos : neg = 1 : negatives
    weights = torch.where(labels > 0, 1.0, negative)
    weights = weights / weights.mean()
    trained = dict(head.named_parameters())
    optimiser = torch.optim.AdamW(trained.values(), lr=params.lr, weight_decay=params.weight_decay)
    first = step = checkpoint.resume(saved, trained, optimiser)
    per_epoch = -(-len(labels) // params.batch)
    for epoch in range(params.epochs):
        order = np.random.default_rng([params.seed, epoch]).permutation(len(labels))
        for at in range(max(0, step - epoch * per_epoch), per_epoch):
            batch = torch.from_numpy(order[at * params.batch : (at + 1) * params.batch])
            loss = binary_cross_entropy_with_logits(
                head(states[batch]), labels[batch], weight=weights[batch]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step % SAVE_EVERY == 0:
                checkpoint.save(saved, step, trained, optimiser)
    return step - first


def measure(head: Head, dev: Samples, *, seed: int) -> dict[str, Any]:
    """AUC of the head's values on dev."""
    if not len(dev.labels):
        return _auc(dev.labels, dev, seed=seed)
    with torch.no_grad():
        return _auc(head(torch.from_numpy(dev.states)).double().numpy(), dev, seed=seed)


def _auc(scores: npt.NDArray, dev: Samples, *, seed: int) -> dict[str, Any]:
    """AUC, its 95 % interval over questions, and what it was counted on."""
    value = calibration.auc(scores, dev.labels)
    interval = calibration.auc_interval(scores, dev.labels, dev.qids, seed=seed)
    return {
        "auc": None if value is None else round(value, 4),
        "interval": None if interval is None else [round(x, 4) for x in interval],
        "prefixes": len(dev.labels), "questions": len(set(dev.qids)),
    }  # fmt: skip
