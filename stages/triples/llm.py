"""Facts written by a language model that was shown one demonstration, believed only if grounded.

KiRAG (Fang, Meng & Macdonald, ACL 2025) and TRACE before it read triples out of passages with
an LLM. Theirs are 8B chat models with five demonstrations; ours continues a plain prompt, with
one demonstration, in lines ``subject | relation | object``, which a 135M model can follow.

The model's text is input from a stranger. A line counts only with exactly three fields, a line
cut by the token limit does not count, and subject and object must occur in the passage's text
or title. What is dropped is counted by reason and the raw text is kept. Passages without one
well-formed line are malformed; if their share exceeds ``max_malformed`` the stage stops. A passage
that the model's server refuses counts as one of them; the next run asks for it again.
"""

import functools
import logging
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt

from stages.digest import digest
from stages.errors import QuarryError, Refused
from stages.lm import open_generator
from stages.models import read_training
from stages.records import RecordStore
from stages.triples import found
from stages.triples.found import Found, Triple, keep_grounded
from stages.types import Generation, Generator, Request

log = logging.getLogger(__name__)

VERSION = "2"  # of parsing and grounding; part of every record's key, as is the prompt
BATCH = 32  # passages generated together and kept in the record store at a time
STOP = ("\n\n", "\nTitle:")

# Short relations, "is" among them, keep a small model to three fields; with "was born in" in the
# demonstration 11 of 20 passages came back malformed, with this one 2.
PROMPT = """\
Write the facts of each passage, one per line, as subject | relation | object.

Title: Marie Curie
Passage: Marie Curie was a physicist. The birthplace of Marie Curie is Warsaw. Marie Curie was \
born in 1867 and had 2 children.
Facts:
Marie Curie | is | physicist
Marie Curie | birthplace | Warsaw
Marie Curie | born in | 1867
Marie Curie | number of children | 2

Title: {title}
Passage: {passage}
Facts:
"""


class Params(found.Params):
    """A generator reads each passage once."""

    extractor: Literal["llm"]
    model: found.Slot  # a finetune entry of role generator
    max_tokens: PositiveInt = 48  # per passage; about three facts
    passage_words: PositiveInt = 120  # the model sees a passage's first words
    max_malformed: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of passages; more: stop
    threads: PositiveInt = 1  # of the local generator


def extract(passages: pa.Table, params: Params, *, model: Path, store: RecordStore) -> list[Found]:
    """What the model read in each passage, in the table's order; known texts are not read again.

    Raises:
        QuarryError: too many passages came back malformed.
    """
    made_by = digest(
        "triples.llm", VERSION, PROMPT, str(params.max_tokens), str(params.passage_words),
        read_training(model, "generator")["fingerprint"],
    )  # fmt: skip
    keys = [digest(made_by, h) for h in passages["text_hash"].to_pylist()]
    rows = list(zip(passages["title"].to_pylist(), passages["text"].to_pylist(), strict=True))
    read = Reader(model, params)
    values = store.compute(keys, rows, read, batch=BATCH, unit="passage", cores=params.threads)
    extracted = [Found([], {"refused": 1}) if v is None else Found.from_bytes(v) for v in values]
    check_malformed(extracted, params.max_malformed)
    return extracted


class Reader:
    """Batches of (title, text) to records; the model is opened with the first batch, if any."""

    def __init__(self, model: Path, params: Params) -> None:
        self.model, self.params = model, params

    @functools.cached_property
    def generator(self) -> Generator:
        return open_generator(self.model, threads=self.params.threads)

    def __call__(self, batch: list[tuple[str, str]]) -> list[bytes | None]:
        prompts = [write_prompt(*row, words=self.params.passage_words) for row in batch]
        requests = [Request(p, self.params.max_tokens, STOP) for p in prompts]
        return [
            None if one is None else read_lines(one, title=title, text=text).to_bytes()
            for one, (title, text) in zip(ask(self.generator, requests), batch, strict=True)
        ]


def ask(generator: Generator, requests: list[Request]) -> list[Generation | None]:
    """A generation for each; None for one that the server refuses, which is found by halving."""
    try:
        return list(generator.generate(requests))
    except Refused as refusal:
        if len(requests) == 1:
            log.warning("a passage is left out: %s", refusal)
            return [None]
        half = len(requests) // 2
        return ask(generator, requests[:half]) + ask(generator, requests[half:])


def write_prompt(title: str, text: str, *, words: int) -> str:
    """The demonstration, then this passage, each on one line: blank lines are the model's stop."""
    passage = " ".join(text.split()[:words])
    return PROMPT.format(title=" ".join(title.split()), passage=passage)


def read_lines(generation: Generation, *, title: str, text: str) -> Found:
    """The grounded facts of a generated text; every other line is counted by its reason."""
    rejected: Counter[str] = Counter()
    lines = [line for line in generation.text.split("\n") if line.strip()]
    if generation.finish == "length" and lines and not generation.text.endswith("\n"):
        lines.pop()
        rejected["truncated"] += 1
    candidates = []
    for line in lines:
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 1:
            rejected["no_separator"] += 1
        elif len(fields) == 2:
            rejected["too_few_fields"] += 1
        elif len(fields) > 3:
            rejected["too_many_fields"] += 1
        else:
            candidates.append(Triple(*fields))
    triples = keep_grounded(candidates, title=title, text=text, rejected=rejected)
    if not candidates:
        rejected["malformed_passage"] += 1
    return Found(triples, dict(rejected), generation.text)


def check_malformed(extracted: list[Found], limit: float) -> None:
    """An error if the share of passages without one well-formed line exceeds ``limit``."""
    bad = [one for one in extracted if one.rejected.keys() & {"malformed_passage", "refused"}]
    if len(bad) > limit * len(extracted):
        raise QuarryError(
            f"triples: {len(bad)} of {len(extracted)} passages came back without one line "
            f"'subject | relation | object' (max_malformed {limit}); the first such text: "
            f"{bad[0].raw[:80]!r}. Use a stronger model, or raise max_malformed."
        )
