"""A dense encoder trained on a corpus's own judgements: contrastive, with mined hard negatives.

    in-batch negatives   Karpukhin et al., Dense Passage Retrieval, EMNLP 2020
    hard negatives       Xiong et al., ANCE, ICLR 2021; ours come from the entry's index

A row is a query of split train, a document judged relevant to it, and documents that the index
ranks high for it (negatives.py). sentence-transformers trains on it with
MultipleNegativesRankingLoss: -log of the softmax of cos(q, d+) / temperature over all documents
of the batch.

``training.json`` gives nDCG@10 on split dev before and after. The vectors for that lie in the
record store, where the indexes of both models find them.

The batches are fixed before the first step, and dropout is drawn from the seed and the step: a
training that was killed goes on from its checkpoint and ends with equal bytes.
"""

import itertools
import json
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import sentence_transformers
import torch
import transformers
from datasets import Dataset
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch import nn
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from stages import checkpoint
from stages.digest import digest
from stages.encoder import DenseEncoder, embed, open_encoder
from stages.errors import QuarryError
from stages.finetune import Inputs, negatives
from stages.finetune.negatives import Row, indexed_text
from stages.index import open_index
from stages.models import TRAINING, read_training, write_training
from stages.params import Entry
from stages.records import RecordStore
from stages.runs import collapse
from stages.tables import read_table
from stages.types import Hit

log = logging.getLogger(__name__)

VERSION = "1"  # of what a step is; part of every checkpoint's name
SAVE_EVERY = 20  # steps between checkpoints


class Params(Entry):
    """Values of a ``dense`` entry."""

    recipe: Literal["dense"]
    corpus: str  # an ingest entry with judgements in split train
    pairs: Literal["none"]
    index: str  # where hard negatives come from
    encoder: str  # of the index, where that is dense
    model: str  # an entry of finetune: the dense encoder to start from
    steps: PositiveInt  # optimiser steps
    batch: PositiveInt = 16  # rows per step
    negatives: NonNegativeInt = 1  # mined ones per row
    skip: NonNegativeInt = 10  # best-ranked documents not drawn: often relevant, only not judged
    depth: PositiveInt = 100  # documents of the index among which they are drawn
    temperature: PositiveFloat = 0.05  # divides the cosines
    lr: PositiveFloat = 5e-5  # peak learning rate; it falls to 0 linearly
    warmup: NonNegativeFloat = 0.1  # share of the steps
    max_tokens: PositiveInt = 32  # of a text while training; serving reads more
    dev_tokens: PositiveInt = 128  # of a text when measured on dev: what the index reads
    seed: int
    threads: PositiveInt = 1


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the trained encoder; seconds of its parts.

    Raises:
        QuarryError: the corpus has no judged document for a query of split train, or an input
            is not what it must be.
    """
    torch.set_num_threads(params.threads)
    made = read_training(inputs.model, "dense")
    queries, passages = read_table(inputs.corpus, "queries"), read_table(inputs.corpus, "passages")
    relevant = negatives.judged(read_table(inputs.corpus, "qrels"))
    questions = negatives.split_of(queries, "train", relevant)
    texts = negatives.document_texts(passages)
    index = open_index(inputs.index, inputs.encoder)
    mined = negatives.mine(questions, relevant, texts, index, skip=params.skip, depth=params.depth)
    rows = negatives.make_rows(relevant, mined, texts, n=params.negatives, seed=params.seed)
    if not rows:
        raise QuarryError(
            f"finetune: corpus '{params.corpus}' has no judged document for a query of split "
            f"train. A dense entry needs judgements; name another corpus."
        )
    batches = list(
        negatives.take_batches(rows, relevant, params.batch, params.steps, seed=params.seed)
    )
    log.info("%d rows, %d steps of %d", len(rows), len(batches), params.batch)

    began = time.perf_counter()
    encoder = open_encoder(inputs.model, max_tokens=params.dev_tokens, threads=params.threads)
    columns = to_columns(batches, questions, texts, encoder.model.prompts)
    sizes = [len(b) for b in batches]
    saved = checkpoint.CHECKPOINTS / f"{_key(params, made, columns, sizes)}.safetensors"
    first = fit(inputs.model, out, columns, sizes, params, saved)
    seconds = time.perf_counter() - began
    made_by = {**params.model_dump(mode="json"), "base": made["fingerprint"], "rows": len(rows)}
    write_training(out, "dense", **made_by)  # sealed: now it can be opened

    began = time.perf_counter()
    tuned = open_encoder(out, max_tokens=params.dev_tokens, threads=params.threads)
    asked = negatives.split_of(queries, "dev", relevant)
    with RecordStore() as store:
        dev = {
            name: dev_ndcg(model, asked, relevant, passages, store)
            for name, model in (("before", encoder), ("after", tuned))
        }
    log.info("dev nDCG@10: %s", dev)
    write_training(out, "dense", **made_by, dev_ndcg_at_10=dev)
    saved.unlink(missing_ok=True)
    return {
        "train_seconds": round(seconds, 2), "trained_steps": len(sizes) - first,
        "rows_per_second": round(sum(sizes[first:]) / seconds, 1),
        "dev_seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip


def to_columns(
    batches: Sequence[Sequence[Row]],
    questions: Mapping[str, str],
    texts: Mapping[str, str],
    prompts: Mapping[str, str],
) -> dict[str, list[str]]:
    """The rows' texts by column, in order: query, positive, negatives."""
    rows = list(itertools.chain.from_iterable(batches))
    columns = {"query": [prompts["query"] + questions[row.qid] for row in rows]}
    for n in range(len(rows[0].docids)):
        name = f"negative_{n}" if n else "positive"
        columns[name] = [prompts["passage"] + texts[row.docids[n]] for row in rows]
    return columns


def _key(
    params: Params,
    made: Mapping[str, object],
    columns: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
) -> str:
    """What a checkpoint belongs to: everything that decides the training."""
    values = params.model_dump_json(exclude={"corpus", "index", "encoder", "model", "dev_tokens"})
    return digest(
        "dense", VERSION, torch.__version__, transformers.__version__,
        sentence_transformers.__version__, values, made["fingerprint"],
        json.dumps([columns, sizes]),
    )  # fmt: skip


class _Progress(TrainerCallback):
    """A bar that is silent where nobody looks."""

    def on_train_begin(
        self, args: SentenceTransformerTrainingArguments, state: TrainerState, *_: object,
        **__: object,
    ) -> None:  # fmt: skip
        self.bar = tqdm(
            total=args.max_steps, initial=state.global_step, unit="step", disable=None, delay=2
        )

    def on_step_end(self, *_: object, **__: object) -> None:
        self.bar.update()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.bar.close()


class _Steps(TrainerCallback):
    """Counts from the checkpoint's step on, makes dropout a step's own, and saves.

    The trainer's own checkpoints are pickles.
    """

    def __init__(self, path: Path, first: int, trained: Mapping[str, nn.Parameter]) -> None:
        self.path, self.first, self.trained = path, first, trained

    def on_train_begin(
        self, args: SentenceTransformerTrainingArguments, state: TrainerState,
        control: TrainerControl, *, lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        **_: object,
    ) -> None:  # fmt: skip
        state.global_step = self.first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimiser's steps were another process's
            for _step in range(self.first):
                lr_scheduler.step()

    def on_step_begin(
        self, args: SentenceTransformerTrainingArguments, state: TrainerState, *_: object,
        **__: object,
    ) -> None:  # fmt: skip
        torch.manual_seed(int(digest("step", str(args.seed), str(state.global_step))[:15], 16))

    def on_step_end(
        self, args: SentenceTransformerTrainingArguments, state: TrainerState,
        control: TrainerControl, *, optimizer: torch.optim.Optimizer, **_: object,
    ) -> None:  # fmt: skip
        step = state.global_step
        if step % SAVE_EVERY == 0 or step == args.max_steps:
            checkpoint.save(self.path, step, self.trained, optimizer)


def fit(base: Path, out: Path, columns: Mapping[str, Sequence[str]], sizes: Sequence[int],
        params: Params, saved: Path) -> int:  # fmt: skip
    """Train the encoder in ``base`` on batches of these sizes, in order; write it to ``out``.

    Training goes on from the checkpoint ``saved`` where there is one; returned is the number of
    steps that it had behind it.
    """
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(params.seed)  # for weights that the base has not, if any
        model = SentenceTransformer(str(base), device="cpu", local_files_only=True)
        model.max_seq_length = params.max_tokens
        ends = list(itertools.accumulate(sizes))
        order = [list(range(end - n, end)) for n, end in zip(sizes, ends, strict=True)]
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch, max_steps=len(sizes), learning_rate=params.lr,
                warmup_steps=round(len(sizes) * params.warmup), seed=params.seed, use_cpu=True,
                batch_sampler=lambda dataset, **_: order[first:], save_strategy="no",
                logging_strategy="no", report_to=[], disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(dict(columns)),
            loss=MultipleNegativesRankingLoss(model, scale=1 / params.temperature),
        )  # fmt: skip
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Before train(), which asks for the batches.
        first = checkpoint.resume(saved, trained, trainer.create_optimizer())
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Steps(saved, first, trained))
        trainer.add_callback(_Progress())
        if first < len(sizes):
            trainer.train()
        save_encoder(model, base, out)
    return first


def save_encoder(model: SentenceTransformer, base: Path, out: Path) -> None:
    """Write the trained weights, with the other files of the directory they were trained from."""
    model[0].auto_model.save_pretrained(out)
    for path in sorted(base.rglob("*")):
        target = out / path.relative_to(base)
        if path.is_file() and path.suffix != ".safetensors" and path.name != TRAINING:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def dev_ndcg(
    encoder: DenseEncoder,
    questions: Mapping[str, str],
    relevant: Mapping[str, Mapping[str, int]],
    passages: pa.Table,
    store: RecordStore,
) -> float | None:
    """Mean nDCG@10 of exact search with this encoder; None without questions."""
    if not questions:
        return None
    docids = passages["docid"].to_pylist()
    titles, bodies = passages["title"].to_pylist(), passages["text"].to_pylist()
    texts = [indexed_text(title, body) for title, body in zip(titles, bodies, strict=True)]
    passage_vecs = embed(encoder, docids, texts, store)
    query_vecs = encoder.encode(list(questions.values()), "query")
    values = []
    for qid, query in zip(questions, query_vecs, strict=True):
        hits = map(Hit, docids, (passage_vecs @ query).tolist())
        values.append(ndcg([h.docid for h in collapse(list(hits))], relevant[qid]))
    return round(sum(values) / len(values), 4)


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], *, k: int = 10) -> float:
    """nDCG@k: Σ grade / log2(rank + 1), by the most that any ranking could have."""

    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], 1))

    return dcg([grades.get(d, 0) for d in ranking]) / dcg(sorted(grades.values(), reverse=True))
