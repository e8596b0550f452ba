"""What goes into a strategy: the common keys of an entry, its questions, the passages."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from stages.digest import uniform
from stages.effects import Question
from stages.params import Entry
from stages.shell import NONE
from stages.splits import of_split
from stages.types import Passage


def _is_named(slot: str) -> str:
    if slot == NONE:
        raise ValueError("this strategy needs one: name an entry")
    return slot


MIB = 2**20
Named = Annotated[str, AfterValidator(_is_named)]  # a slot that a strategy cannot do without


def _is_budget(mib: Any) -> Any:
    if mib == "auto" or (type(mib) in (int, float) and 0 <= mib < math.inf):
        return mib
    raise ValueError("write a number of MiB, 0 or more, or auto")


Budget = Annotated[float | Literal["auto"], BeforeValidator(_is_budget)]


class Ahead(Entry):
    """How an index of kind ``clustered`` is served from its file, with clusters fetched ahead.

    The stage and the HTTP service work by the same values. What is fetched when changes no result,
    and an entry finds what it finds without this; scores are faiss's, in float32, where an index in
    memory computes them again in float64. Four values do decide what is found: ``nprobe``; a short
    ``codec``, which proposes the candidates that are scored again; ``tier`` cuda, where the last
    bits of a score depend on what is resident; ``scope`` resident, which searches whatever is in
    memory at that moment, so no stage does it, the service alone.

    ``budget_mib: auto`` takes the budget that is best by the latency model of what was served so
    far, and until there is one all of ``hot_mib``.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    hot_mib: NonNegativeFloat = 256  # of clusters in memory
    budget_mib: Budget = 64  # that one window may copy
    strategy: Literal["gradual", "all", "once", "runtime", "none"] = "gradual"  # when it copies
    cache_fraction: float = Field(0.5, ge=0, le=1)  # of hot_mib; what stays between requests
    depth: PositiveInt = 1024  # clusters of a hint's list that are looked at
    nprobe: PositiveInt | None = None  # clusters that a query is searched in; none: the index's
    codec: Literal["fp32", "fp16", "int8"] = "fp32"  # of both tiers; short ones are scored again
    tier: Literal["ram", "cuda"] = "ram"  # disk -> RAM, or pinned RAM -> CUDA
    scope: Literal["probed", "resident"] = "probed"
    disk_mib_s: PositiveFloat | None = None  # the cold tier is slowed down to this; none: it is not
    disk_ms: NonNegativeFloat = 0.0  # then, besides, for each run of neighbouring clusters

    def settings(self) -> dict[str, Any]:
        """The same for ``prefetch.engine.open_engine``: in bytes and seconds."""
        disk, budget = self.disk_mib_s, self.budget_mib
        return {
            "hot_bytes": int(self.hot_mib * MIB),
            "budget": None if budget == "auto" else int(budget * MIB),
            "throttle": (disk * MIB, self.disk_ms / 1000) if disk else None,
            **self.model_dump(exclude={"hot_mib", "budget_mib", "disk_mib_s", "disk_ms"}),
        }


class Served(Entry):
    """The keys that every entry of 'serve' has."""

    corpus: str
    index: str  # what it searches
    encoder: str  # of the index, where that is dense
    triples: str
    model: str  # the generator
    split: str  # of the questions, as ingest named it; all: every one, also those of no split
    questions: PositiveInt | None = None  # a sample of so many, by hash of the qid; none: all
    k: PositiveInt = 100  # documents per question in the run
    max_active: PositiveInt = 256  # questions open at once
    ahead: Ahead | None = None  # none: the whole index is in memory
    facts: str = NONE  # an index of kind facts: triples with their vectors
    scorer: str = NONE  # what the strategy's method trained: an aligner, a judge, a value head


def pick_questions(queries: pa.Table, split: str, n: int | None) -> list[Question]:
    """The questions of a split, by qid; of more than ``n`` those of smallest hash.

    The sample depends on the qids alone, and that of n is part of that of n + 1.

    Raises:
        QuarryError: the corpus has questions, but no such split.
    """
    rows = of_split(queries, split).to_pylist()
    rows = sorted(rows, key=lambda r: (uniform(r["qid"]), r["qid"]))[:n]
    rows.sort(key=lambda r: r["qid"])
    return [Question(r["qid"], r["text"], tuple(r["options"] or ())) for r in rows]


class Library:
    """What a strategy may look up without an effect: passages, their facts, a text's length."""

    def __init__(
        self, passages: pa.Table, count_tokens: Callable[[list[str]], list[int]] | None,
        *, triples: pa.Table | None = None, facts: Any = None,
    ) -> None:  # fmt: skip
        self.count_tokens = count_tokens
        self.triples = triples  # the entry's slot of that name, or None
        self.facts = facts  # what open_index gives for kind facts, or None
        self._table = passages.select(["docid", "title", "text"])

    @cached_property
    def _row(self) -> dict[str, int]:
        return {docid: i for i, docid in enumerate(self._table["docid"].to_pylist())}

    def passages(self, docids: list[str]) -> list[Passage]:
        """Title and text of these passages, in order."""
        rows = pa.array([self._row[d] for d in docids], pa.int64())
        return [Passage(**row) for row in self._table.take(rows).to_pylist()]
