"""Thoughts about a question, as RAR² asks for them and reads them: prompts, letters, replies.

Xu et al., RAR²: Retrieval-Augmented Medical Reasoning via Thought-Driven Retrieval, EMNLP 2025
Findings (arXiv:2509.22713). A kernel, since serving asks what preference training scores. The
paper's wording is not public: the prompts are ours, two-shot and plain as in ``stages.prompts``,
and so are the rules by which replies are read.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.prompts import Order
from stages.text import split_sentences
from stages.types import Passage

PROMPT_VERSION = "rar2-1"  # part of what pairs say of a group
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Shot(NamedTuple):
    question: str
    options: tuple[str, ...]
    passage: Passage
    thought: str
    letter: str


# General knowledge, written for this file: in no corpus that we measure on.
_SHOTS = (
    _Shot(
        "Which city is the capital of Australia?",
        ("Sydney", "Canberra", "Perth"),
        Passage("", "Canberra", "Canberra was chosen in 1908 as the site of Australia's capital."),
        "The largest city of Australia is Sydney, but its parliament sits inland, in a city that "
        "was planned as a compromise between Sydney and Melbourne.",
        "B",
    ),
    _Shot(
        "How many strings does a standard violin have?",
        ("three", "six", "four"),
        Passage("", "Violin", "A violin has four strings, usually tuned to G, D, A and E."),
        "A violin is a bowed instrument of the violin family, tuned in fifths from a low G to a "
        "high E, with one string for each of these notes.",
        "C",
    ),
)


def think_prompt(
    question: str, options: Sequence[str], passages: Sequence[Passage] = (),
    order: Order = "best_last",
) -> str:  # fmt: skip
    """The prompt for a thought, that names no option; what follows is " thought\\n".

    With passages (the iterative mode) the thought is one about what they say.
    """
    shots = [
        _block(s.question, s.options if options else (), [s.passage] if passages else [], order)
        + f"\nThought: {s.thought}"
        for s in _SHOTS
    ]
    return "\n\n".join([*shots, _block(question, options, passages, order) + "\nThought:"])


def letter_prompt(
    question: str, options: Sequence[str], passages: Sequence[Passage], thought: str = "",
    order: Order = "best_last",
) -> str:  # fmt: skip
    """The prompt for the letter of an option; what follows is " B\\n".

    With a thought and without passages this is g_direct, the answer that goes on from the thought.
    """
    shots = [
        _block(s.question, s.options, [s.passage] if passages else [], order)
        + (f"\nThought: {s.thought}" if thought else "")
        + f"\nAnswer: {s.letter}"
        for s in _SHOTS
    ]
    asked = _block(question, options, passages, order)
    asked += f"\nThought: {_line(thought)}" if thought else ""
    return "\n\n".join([*shots, f"{asked}\nAnswer:"])


def letter_options(options: Sequence[str]) -> list[str]:
    """The letters that may follow ``letter_prompt``, for a choice by log-probability."""
    return [f" {letter}" for letter in LETTERS[: len(options)]]


def _block(
    question: str, options: Sequence[str], passages: Sequence[Passage], order: Order
) -> str:  # fmt: skip
    shown = passages if order == "best_first" else passages[::-1]
    lines = [f"Passage: {_line(p.title)}. {_line(p.text)}" for p in shown]
    lines.append(f"Question: {_line(question)}")
    if options:
        named = zip(LETTERS, options, strict=False)
        lines.append("Options: " + " ".join(f"({letter}) {_line(text)}" for letter, text in named))
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


# -- replies ----------------------------------------------------------------------------------

# An option named by its letter: "(B)", "option B", "the answer is B". A bare letter in a text is
# none: vitamin A, hepatitis B.
_NAMED = re.compile(
    r"\((?P<paren>[A-Za-z])\)|\b(?i:options?|choices?)\s+(?P<option>[A-Za-z])\b"
    r"|\b(?i:answer)\s*(?i:is|:)?:?\s*(?P<answer>[A-Z])\b"
)
_BARE = re.compile(r"\W*([A-Z])\W*")
_STATED = re.compile(
    r"\b(?i:answer)\s*(?i:is|:)?:?\s*(?:(?i:option)\s+)?\(?([A-Z])\b\)?(?P<or>\s*(?:,|/|\bor\b|\band\b)\s*\(?[A-Z]\b)?"
)
_FIRST = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])(?:[.):]|\s*$))")


def read_thought(text: str, n_options: int) -> str:
    """A reply without the sentences that commit to an option's letter; may be empty."""
    line = _line(text)
    if not n_options:
        return line
    sentences = (line[start:end] for start, end in split_sentences(line))
    return " ".join(s for s in sentences if not names_option(s, n_options))


def names_option(text: str, n_options: int) -> bool:
    """Whether one of the first ``n_options`` letters is named as an option."""
    letters = LETTERS[:n_options]
    bare = _BARE.fullmatch(text)
    named = [m.group(m.lastgroup).upper() for m in _NAMED.finditer(text)]
    return any(letter in letters for letter in [*named, *([bare[1]] if bare else [])])


def read_letter(text: str, n_options: int) -> int | None:
    """The option that a reply chooses; None if it chooses none, several, or one that is not there.

    "The answer is (B).", "B", "B) because", "(B)" choose B; "A or B" and "The answer is A or B" do
    not choose. Where the answer is stated twice, differently, it is not chosen either.
    """
    stated = list(_STATED.finditer(text))
    if stated:
        letters = {m[1] for m in stated}
        if len(letters) > 1 or any(m["or"] for m in stated):
            return None
        letter = letters.pop()
    else:
        first = _BARE.fullmatch(text) or _FIRST.match(text)
        if first is None:
            return None
        letter = next(filter(None, first.groups()))
    at = LETTERS.index(letter)
    return at if at < n_options else None
