"""FREESON's prompt: thoughts with sub-queries and what they found, two questions as examples.

The paper prompts a reasoning model of 7B parameters with an instruction and markers. Ours is the
plain two-shot form of ``stages.prompts``: a line a thought, "Search:" before a sub-query, "Found:"
before a passage, "Answer:" before the end.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.text import split_sentences
from stages.types import Passage

_MARKED = re.compile(r"\b(Search|Answer):", re.IGNORECASE)


class Found(NamedTuple):
    """A thought, the sub-query that it ended with, and what that found."""

    thought: str
    query: str
    passages: Sequence[Passage]

    def __str__(self) -> str:
        search = f" Search: {_line(self.query)}" if self.query else ""
        lines = [f"Thought: {_line(self.thought)}{search}".replace(":  ", ": ")]
        return "\n".join(
            [*lines, *(f"Found: {_line(p.title)}. {_line(p.text)}" for p in self.passages)]
        )


class Thought(NamedTuple):
    """What a generated line says: an answer, or a sub-query ("" is neither)."""

    thought: str
    query: str
    answer: str | None = None


def _passage(title: str, text: str) -> list[Passage]:
    return [Passage("", title, text)]


# General knowledge, written for this file: a comparison and a bridge.
_SHOTS = (
    (
        "Which is longer, the Rhine or the Seine?",
        (
            Found("I need the length of the Rhine.", "How long is the Rhine?",
                  _passage("Rhine", "The Rhine is 1,230 km long.")),
            Found("I need the length of the Seine.", "How long is the Seine?",
                  _passage("Seine", "The Seine is 775 km long.")),
        ),
        "1,230 km is more than 775 km. Answer: the Rhine",
    ),
    (
        "In which country was the composer of Aida born?",
        (
            Found("I need the composer of Aida.", "Who composed Aida?",
                  _passage("Aida", "Aida is an opera by Giuseppe Verdi.")),
            Found("I need where Giuseppe Verdi was born.", "Where was Giuseppe Verdi born?",
                  _passage("Giuseppe Verdi", "Giuseppe Verdi was born in Le Roncole, Italy.")),
        ),
        "Le Roncole is in Italy. Answer: Italy",
    ),
)  # fmt: skip


def thought_prompt(question: str, steps: Sequence[Found]) -> str:
    """The prompt for the next thought; " I need x. Search: What is x?\\n" follows."""
    shots = [
        "\n".join([f"Question: {asked}", *map(str, done), f"Thought: {last}"])
        for asked, done, last in _SHOTS
    ]
    return "\n\n".join(
        [*shots, "\n".join([f"Question: {_line(question)}", *map(str, steps), "Thought:"])]
    )


def read_thought(text: str) -> Thought:
    """A generated line, read: what is behind its first marker; without one its last sentence."""
    thought, query = text, ""
    if marked := _MARKED.search(text):
        thought, rest = text[: marked.start()].strip(), _line(text[marked.end() :])
        if marked[1].lower() == "answer":
            return Thought(thought, "", rest)
        again = _MARKED.search(rest)
        query = _line(rest[: again.start()] if again else rest)
    if query or not (spans := split_sentences(thought)):
        return Thought(thought, query)
    start, end = spans[-1]
    return Thought(thought[:start].strip(), _line(thought[start:end]))


def _line(text: str) -> str:
    """``text`` on one line: a line break would end a thought early."""
    return " ".join(text.split())
