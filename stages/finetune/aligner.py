"""KiRAG's aligner: an encoder that finds the fact that comes next, for a question and a chain.

Fang, Meng & Macdonald, KiRAG: Knowledge-Driven Iterative Retriever for Enhancing
Retrieval-Augmented Generation, ACL 2025. A bi-encoder reads the question with the facts known so
far, and a fact, and is trained with InfoNCE (van den Oord et al., arXiv:1807.03748) on the groups
of pairs recipe ``chains``:

    l = -log exp(cos(u, t+) / tau) / sum over the triples t of the batch of exp(cos(u, t) / tau)

A step has the samples of ``questions`` questions, at most ``samples`` of each, and with each sample
its next fact and ``negatives`` others; all of it is drawn by the seed, anew in every epoch. Ours:
a fact that occurs twice in a batch counts once, and a sample does not see the other next facts of
its own question: in a comparison they would be as right as its own.

``training.json`` has the mean reciprocal rank of the next fact among all others of its group, on
split dev: of the base and of the aligner, their difference, each with a bootstrap interval over
questions. Equal scores count against the next fact. The paper keeps the best of the checkpoints
measured so; here it is the last, and the measure stays what it is for.

Dropout and draws come from the seed and the step: a training that was killed goes on from its
checkpoint and ends with equal bytes.
"""

import itertools
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats
import sentence_transformers
import torch
import transformers
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup
from transformers.utils import logging as transformers_logging

from stages import checkpoint
from stages.digest import digest
from stages.encoder import embed, open_encoder
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune.dense import save_encoder
from stages.models import read_training, write_training
from stages.params import Entry
from stages.records import RecordStore
from stages.tables import read_table

log = logging.getLogger(__name__)

VERSION = "1"  # of what a step is; part of every checkpoint's name
SAVE_EVERY = 20  # steps between checkpoints
CLIP = 1.0  # largest gradient norm of a step
RESAMPLES = 2000  # of questions, for an interval
DECIMALS = 5  # of a cosine, before ranking: closer ones are equal


class Params(Entry):
    """Values of an ``aligner`` entry."""

    recipe: Literal["aligner"]
    corpus: Literal["none"]
    pairs: str  # an entry of pairs, recipe chains
    index: Literal["none"]
    encoder: Literal["none"]
    model: str  # an entry of finetune: the dense encoder to start from
    steps: PositiveInt  # optimiser steps
    questions: PositiveInt = 8  # of a step
    samples: PositiveInt = 2  # of a question in an epoch, at the most
    negatives: PositiveInt = 7  # of a sample, drawn from its group
    tau: PositiveFloat = 0.01  # divides the cosines
    lr: PositiveFloat = 2e-5  # peak learning rate; it falls to 0 linearly
    weight_decay: NonNegativeFloat = 0.01
    warmup: NonNegativeFloat = Field(default=0.1, le=1)  # share of the steps
    query_tokens: PositiveInt = 256  # of question and chain
    max_tokens: PositiveInt = 64  # of a fact: as in the index of kind facts
    seed: int
    threads: PositiveInt = 1


class Sample(NamedTuple):
    """A group of the pairs: what is asked, the fact that comes next, others."""

    group_id: str
    qid: str
    split: str
    step: int  # facts known
    query: str
    positive: str
    others: tuple[str, ...]


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the trained aligner; seconds of its parts.

    Raises:
        QuarryError: the pairs are not those of recipe chains, or none is of split train.
    """
    torch.set_num_threads(params.threads)
    transformers_logging.disable_progress_bar()
    made = read_training(inputs.model, "dense")
    samples = read_samples(inputs.pairs)
    learn = [s for s in samples if s.split == "train"]
    dev = [s for s in samples if s.split == "dev"]
    if not learn:
        raise QuarryError(
            f"finetune: pairs '{params.pairs}' has no sample of split train. An aligner needs "
            f"pairs of recipe chains, of a corpus with questions to train on."
        )
    log.info("%d samples to train on, %d on dev", len(learn), len(dev))
    key = digest(
        "aligner", VERSION, torch.__version__, transformers.__version__,
        sentence_transformers.__version__, made["fingerprint"],
        params.model_dump_json(exclude={"pairs", "model"}), repr(learn),
    )  # fmt: skip
    saved = checkpoint.CHECKPOINTS / f"{key}.safetensors"
    began = time.perf_counter()
    first = fit(inputs.model, out, learn, params, saved)
    seconds = time.perf_counter() - began
    made_by = {**params.model_dump(mode="json"), "base": made["fingerprint"]}
    made_by |= {"train_samples": len(learn)}
    write_training(out, "dense", **made_by)  # sealed: now it can be opened

    began = time.perf_counter()
    with RecordStore() as store:
        before, after = (
            reciprocal_ranks(folder, dev, params, store) for folder in (inputs.model, out)
        )
    quality = compare(dev, before, after, seed=params.seed)
    log.info("dev: %s", quality)
    write_training(out, "dense", **made_by, dev=quality)
    saved.unlink(missing_ok=True)
    return {
        "train_seconds": round(seconds, 2), "trained_steps": params.steps - first,
        "steps_per_second": round((params.steps - first) / seconds, 3),
        "dev_seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip


def read_samples(pairs: Path) -> list[Sample]:
    """The groups as samples, in table order.

    Raises:
        QuarryError: a group has not one chosen fact and others.
    """
    chosen: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for c in read_table(pairs, "pref_candidates").to_pylist():
        (chosen if c["label"] > 0 else others).setdefault(c["group_id"], []).append(c["text"])
    samples = []
    for g in read_table(pairs, "pref_groups").to_pylist():
        own = chosen.get(g["group_id"], [])
        if g["method"] != "kirag" or len(own) != 1 or g["group_id"] not in others:
            raise QuarryError(
                f"finetune: group {g['group_id']} ({g['method']}) has {len(own)} chosen texts and "
                f"{len(others.get(g['group_id'], []))} others; an aligner needs groups of pairs "
                f"recipe chains, with one chosen fact and others. Name such an entry under pairs."
            )
        samples.append(Sample(
            g["group_id"], g["qid"], g["split"], json.loads(g["meta"])["step"], g["prompt"],
            own[0], tuple(others[g["group_id"]]),
        ))  # fmt: skip
    return samples


# -- the loss ------------------------------------------------------------------------------------


def info_nce(scores: Tensor, labels: Tensor, *, tau: float, hidden: Tensor | None = None) -> Tensor:
    """-log softmax(scores / tau) at the label of each row, (b,).

    ``scores`` (b, m) are cosines, ``labels`` (b,) columns; where ``hidden`` (b, m) is true a
    column is not there for that row.
    """
    logits = scores / tau
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


class Batch(NamedTuple):
    """The texts of a step, and which goes with which."""

    queries: list[str]  # (b,)
    facts: list[str]  # (m,), each once
    labels: list[int]  # (b,): the column of the next fact
    hidden: list[list[bool]]  # (b, m): another next fact of the same question


def draw_epoch(
    samples: Sequence[Sample], epoch: int, *, questions: int, most: int, seed: int
) -> list[list[Sample]]:
    """The samples of each step of an epoch: every question once, at most ``most`` of each."""
    draw = partial(digest, str(seed), str(epoch))
    by_question: dict[str, list[Sample]] = {}
    for s in sorted(samples, key=lambda s: draw(s.group_id)):
        by_question.setdefault(s.qid, []).append(s)
    order = sorted(by_question, key=draw)
    return [
        [s for qid in order[at : at + questions] for s in by_question[qid][:most]]
        for at in range(0, len(order), questions)
    ]


def draw_steps(
    samples: Sequence[Sample], *, questions: int, most: int, seed: int
) -> Iterator[tuple[int, list[Sample]]]:
    """(epoch, samples) of each step, without end."""
    for epoch in itertools.count():
        for drawn in draw_epoch(samples, epoch, questions=questions, most=most, seed=seed):
            yield epoch, drawn


def make_batch(
    samples: Sequence[Sample], nexts: Mapping[str, set[str]], epoch: int, *, negatives: int,
    seed: int,
) -> Batch:  # fmt: skip
    """The samples of a step with drawn others; ``nexts`` are all next facts of each question."""
    columns: dict[str, int] = {}
    for s in samples:
        drawn = sorted(s.others, key=lambda t: digest(str(seed), str(epoch), s.group_id, t))
        for text in (s.positive, *drawn[:negatives]):
            columns.setdefault(text, len(columns))
    hidden = [[text in nexts[s.qid] and text != s.positive for text in columns] for s in samples]
    return Batch(
        [s.query for s in samples], list(columns), [columns[s.positive] for s in samples], hidden
    )


# -- training ------------------------------------------------------------------------------------


def fit(base: Path, out: Path, samples: Sequence[Sample], params: Params, saved: Path) -> int:
    """Train the encoder in ``base`` and write it to ``out``; how many steps were done before."""
    nexts: dict[str, set[str]] = {}
    for s in samples:
        nexts.setdefault(s.qid, set()).add(s.positive)
    how = {"questions": params.questions, "most": params.samples, "seed": params.seed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)  # for weights that the base has not, if any
        model = SentenceTransformer(str(base), device="cpu", local_files_only=True)
        prompts = open_encoder(base).model.prompts
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimiser = torch.optim.AdamW(
            trained.values(), lr=params.lr, weight_decay=params.weight_decay
        )
        first = checkpoint.resume(saved, trained, optimiser)
        schedule = get_linear_schedule_with_warmup(
            optimiser, round(params.steps * params.warmup), params.steps
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimiser's steps were another process's
            for _step in range(first):
                schedule.step()
        model.train()
        steps = itertools.islice(draw_steps(samples, **how), first, params.steps)
        with tqdm(total=params.steps, initial=first, unit="step", disable=None, delay=2) as bar:
            for step, (epoch, drawn) in enumerate(steps, first):
                batch = make_batch(
                    drawn, nexts, epoch, negatives=params.negatives, seed=params.seed
                )
                torch.manual_seed(int(digest("step", str(params.seed), str(step))[:15], 16))
                loss = step_loss(model, batch, prompts, params)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained.values(), CLIP)
                optimiser.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
                if (step + 1) % SAVE_EVERY == 0 or step + 1 == params.steps:
                    checkpoint.save(saved, step + 1, trained, optimiser)
        save_encoder(model, base, out)
    return first


def step_loss(
    model: SentenceTransformer, batch: Batch, prompts: Mapping[str, str], params: Params
) -> Tensor:
    """The mean loss of a step's samples."""
    queries = [prompts["query"] + text for text in batch.queries]
    facts = [prompts["passage"] + text for text in batch.facts]
    query_vecs = _encode(model, queries, params.query_tokens)  # (b, d)
    fact_vecs = _encode(model, facts, params.max_tokens)  # (m, d)
    losses = info_nce(
        query_vecs @ fact_vecs.T, torch.tensor(batch.labels), tau=params.tau,
        hidden=torch.tensor(batch.hidden),
    )  # fmt: skip
    return losses.mean()


def _encode(model: SentenceTransformer, texts: Sequence[str], max_tokens: int) -> Tensor:
    """(n, d) unit vectors, with their gradient."""
    model.max_seq_length = min(max_tokens, model[0].auto_model.config.max_position_embeddings)
    vectors = model(model.preprocess(list(texts)))["sentence_embedding"]
    return nn.functional.normalize(vectors, dim=1)


# -- what it is worth ----------------------------------------------------------------------------


def reciprocal_ranks(
    folder: Path, samples: Sequence[Sample], params: Params, store: RecordStore
) -> npt.NDArray[np.float64]:
    """1 / the rank of the next fact among all others of its group, by sample."""
    reads = partial(open_encoder, folder, threads=params.threads)
    facts = list(dict.fromkeys(t for s in samples for t in (s.positive, *s.others)))
    fact_vecs = embed(reads(max_tokens=params.max_tokens), facts, facts, store)
    queries = list(dict.fromkeys(s.query for s in samples))
    query_vecs = reads(max_tokens=params.query_tokens).encode(queries, "query")
    row, column = ({text: i for i, text in enumerate(texts)} for texts in (facts, queries))
    values = np.empty(len(samples))
    for i, s in enumerate(samples):
        vecs = fact_vecs[[row[t] for t in (s.positive, *s.others)]].astype(np.float64)
        scores = np.round(vecs @ query_vecs[column[s.query]].astype(np.float64), DECIMALS)
        values[i] = 1 / (scores >= scores[0]).sum()
    return values


def compare(
    samples: Sequence[Sample],
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    *,
    seed: int,
) -> dict[str, Any]:
    """MRR of all samples and by the number of facts known, each as ``_measure`` says."""
    steps = sorted({s.step for s in samples})
    parts = {"all": list(range(len(samples)))}
    if len(steps) > 1:
        parts |= {
            f"known_{step}": [i for i, s in enumerate(samples) if s.step == step] for step in steps
        }
    return {
        name: _measure([samples[i].qid for i in rows], before[rows], after[rows], seed=seed)
        for name, rows in parts.items()
    }


def _measure(
    qids: Sequence[str],
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    *,
    seed: int,
) -> dict[str, Any]:
    """The mean over questions of the mean over their samples, with its 95 % interval."""
    rows: dict[str, list[int]] = {}
    for i, qid in enumerate(qids):
        rows.setdefault(qid, []).append(i)
    said: dict[str, Any] = {"samples": len(qids), "questions": len(rows)}
    for name, values in (("before", before), ("after", after), ("difference", after - before)):
        of_question = np.array([values[own].mean() for own in rows.values()])
        said[name] = {"MRR": None, "interval": None}
        if len(of_question):
            said[name]["MRR"] = round(float(of_question.mean()), 4)
        if len(of_question) > 1:
            said[name]["interval"] = _interval(of_question, seed)
    return said


def _interval(values: npt.NDArray[np.float64], seed: int) -> list[float]:
    """95 % percentile bootstrap of the mean."""
    low, high = np.min(values), np.max(values)
    if low < high:
        found = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=256,
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = found.low, found.high
    return [round(float(low), 4), round(float(high), 4)]
