"""The reader's prompt: what serving asks and what preference training scores is one text.

Two demonstrations, plain text, an answer that ends with its line. On SmolLM2-135M this form
beats the chat template by far. Everything up to the first passage (or, without passages, up
to the question) is the same for all questions, so a generator can reuse its keys and values.

The best passage comes last, beside the question: a small reader believes what it read last (the
study ``fanoutqa-leaf-dev`` compares the two orders, docs/studies.md).
"""

from collections.abc import Callable, Sequence
from typing import Literal

from stages.types import Passage

PROMPT_VERSION = "rag-2"  # part of every key that a text made from these prompts has
Order = Literal["best_last", "best_first"]  # of the passages in a prompt
STOP = ("\n",)  # the answer is one line
LONGEST_WORD = 30  # characters; a longer run without a space is no word (Chinese, a URL)

# General knowledge, written for this file: in no corpus that we measure on.
_DEMONSTRATIONS = (
    (
        "Which city is the capital of Australia?",
        Passage("", "Canberra", "Canberra was chosen in 1908 as the site of Australia's capital."),
        "Canberra",
    ),
    (
        "How many strings does a standard violin have?",
        Passage("", "Violin", "A violin has four strings, usually tuned to G, D, A and E."),
        "four",
    ),
)


def rag_prompt(question: str, passages: Sequence[Passage], order: Order = "best_last") -> str:
    """The prompt of a question; what follows is " answer\\n".

    Passages are given best first. Without passages the demonstrations have none either.
    """
    shown = passages if order == "best_first" else passages[::-1]
    parts = [
        _block(demo, [passage] if passages else []) + f" {answer}"
        for demo, passage, answer in _DEMONSTRATIONS
    ]
    return "\n\n".join([*parts, _block(question, shown)])


def _block(question: str, passages: Sequence[Passage]) -> str:
    lines = [f"Passage: {_line(p.title)}. {_line(p.text)}" for p in passages]
    return "\n".join([*lines, f"Question: {_line(question)}", "Answer:"])


def _line(text: str) -> str:
    """``text`` on one line: a line break would end an answer early."""
    return " ".join(text.split())


def cut_passages(
    passages: Sequence[Passage], tokens: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Passage]:
    """Passages whose text has at most ``tokens`` tokens by ``count_tokens``, cut at a word's end.

    Bisection over characters, all passages at once: log2(longest text) calls. Titles stay whole.
    """
    texts = [_line(p.text) for p in passages]
    fits = [0] * len(texts)  # characters that are known to fit
    over = [len(t) + 1 for t in texts]  # characters that are known to be too many
    while unknown := [i for i in range(len(texts)) if over[i] - fits[i] > 1]:
        # The whole text is tried first: most passages fit.
        tried = [
            len(texts[i]) if over[i] > len(texts[i]) else (fits[i] + over[i]) // 2 for i in unknown
        ]
        counts = count_tokens([texts[i][:n] for i, n in zip(unknown, tried, strict=True)])
        for i, n, count in zip(unknown, tried, counts, strict=True):
            (fits if count <= tokens else over)[i] = n
    cut = [_whole_words(text, at) for text, at in zip(texts, fits, strict=True)]
    return [p._replace(text=text) for p, text in zip(passages, cut, strict=True)]


def _whole_words(text: str, at: int) -> str:
    if at == len(text) or text[at].isspace():
        return text[:at].rstrip()
    space = text.rfind(" ", max(0, at - LONGEST_WORD), at)
    return text[: space if space >= 0 else at].rstrip()
