"""Chains of facts as text: how a triple is written, read back, matched, and asked for.

What serving KiRAG and training its aligner must do alike: Fang, Meng & Macdonald, KiRAG, ACL 2025,
with the chain builder of TRACE (Fang et al., 2024). A triple is one string, "<subject; relation;
object>": that string is the truth. Its fields are a best effort, since they may hold ";".
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.answers import token_f1

# A template that a model repeats instead of filling it in.
_ECHO = re.compile(
    r"(head|subject)( entity)?;(relation|predicate|rel);(tail|object)( entity)?", re.IGNORECASE
)
_BRACKETS = re.compile(r"<([^<>\n]+)>")


class Written(NamedTuple):
    """A triple as a model wrote it, blanks inside the brackets taken away."""

    text: str  # with its brackets
    fields: tuple[str, ...]  # three, unless it is malformed

    @property
    def is_sound(self) -> bool:
        """Whether it has three fields, none of them empty."""
        return len(self.fields) == 3 and all(self.fields)


def triple_text(subj: str, rel: str, obj: str) -> str:
    """The triple as one string."""
    return f"<{subj}; {rel}; {obj}>"


def chain_query(question: str, chain: Sequence[str]) -> str:
    """What the aligner compares with triples: the question, and what is known so far.

    An empty chain leaves the bare question. KiRAG's code trains so and then serves "question,
    knowledge triples: ."; ours is one form for both.
    """
    if not chain:
        return question
    return f"{question}\nknowledge triples: {'. '.join(chain)}."


def parse_triples(text: str) -> list[Written]:
    """The triples in a generated text, in order, echoes of a template left out.

    A bracket that is not closed on its line is none; one with other than three fields is kept
    and is not sound. ``A; r; B; C`` is ("A", "r", "B; C"): objects are lists more often than names
    hold semicolons.
    """
    found = []
    for match in _BRACKETS.finditer(text):
        inner = " ".join(match[1].split())
        fields = tuple(part.strip() for part in inner.split(";", 2))
        if inner and not _ECHO.fullmatch(";".join(fields)):
            found.append(Written(f"<{inner}>", fields))
    return found


def best_match(text: str, candidates: Sequence[str]) -> tuple[int, float]:
    """(place, token F1) of the candidate most like ``text``, the first of several; (-1, 0) of none.

    F1 after SQuAD's normalisation, as HotpotQA measures answers.
    """
    scores = [token_f1(text, [candidate]) for candidate in candidates]
    best = max(scores, default=0.0)
    return (scores.index(best), best) if scores else (-1, 0.0)
