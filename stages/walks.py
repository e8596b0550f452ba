"""How a passage reads for a model that walks through the corpus (FREESON), and what it is asked.

The index, the recipes that train the value head and the search itself must write the same: a
walk is a piece of ``passage_text``, token by token, and the prompt ends where it begins.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.digest import digest
from stages.types import Passage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# General knowledge, written for this file: in no corpus that we measure on.
_SHOTS = (
    (
        "Which city is the capital of Australia?",
        Passage("", "Canberra", "Canberra was chosen in 1908 as the site of Australia's capital."),
    ),
    (
        "How many strings does a standard violin have?",
        Passage("", "Violin", "A violin has four strings, usually tuned to G, D, A and E."),
    ),
)


def passage_text(title: str, text: str) -> str:
    """ " Title. Text" on one line: it begins with a space, as what follows a prompt does."""
    return " " + " ".join((f"{title}. {text}" if title else text).split())


def walk_prompt(query: str) -> str:
    """The prompt whose continuation is a passage that answers the query, as ``passage_text``."""
    shots = [_ask(question) + passage_text(*shot[1:]) for question, shot in _SHOTS]
    return "\n\n".join([*shots, _ask(query)])


def _ask(question: str) -> str:
    return f"Question: {' '.join(question.split())}\nPassage:"


def levels(n: int, granularity: int, depth: int) -> Sequence[int]:
    """Lengths of the prefixes of n tokens that are nodes: every ``granularity`` tokens, and all."""
    whole = range(granularity, min(n, granularity * depth) + 1, granularity)
    return [*whole, n] if 0 < n < granularity * depth and n % granularity else list(whole)


def tokenizer_print(tokenizer: "Tokenizer") -> str:
    """A fingerprint of how texts are cut; equal for a model and one that was trained from it."""
    return digest("tokenizer", tokenizer.to_str())
