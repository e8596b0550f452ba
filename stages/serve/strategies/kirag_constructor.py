"""KiRAG's constructor: the facts, the question and the chain so far; out comes the next item.

The paper shows an instructed model of 8B parameters up to five demonstrations, those nearest to
the question. Ours are two, fixed, in the plain form of ``stages.prompts``: a bridge and a
comparison, each with a fact that is of no use. Where the model only chooses, it may not choose what
the chain has already, and an option counts by its length (``Params.length_bonus``).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.chains import parse_triples, triple_text
from stages.effects import LLM, Choice
from stages.prompts import STOP, cut_passages
from stages.serve.asked import Library
from stages.serve.reading import Part, first_sentence, stated_answer
from stages.types import Passage, Request

if TYPE_CHECKING:
    from stages.serve.strategies.kirag import Params

_BRIDGE = "In which country was the composer of Aida born?"
_COMPARISON = "Which is longer, the Rhine or the Seine?"
# (question, facts, which of them lead to the answer, the answer), facts as triples and as sentences
_TRIPLES = (
    (
        _BRIDGE,
        [
            triple_text("Giuseppe Verdi", "was born in", "Italy"),
            triple_text("Aida", "was first performed in", "Cairo"),
            triple_text("Aida", "was composed by", "Giuseppe Verdi"),
        ],
        (2, 0),
        "Italy",
    ),
    (
        _COMPARISON,
        [
            triple_text("Rhine", "has length", "1,230 km"),
            triple_text("Seine", "flows through", "Paris"),
            triple_text("Seine", "has length", "775 km"),
        ],
        (0, 2),
        "the Rhine",
    ),
)
_SENTENCES = (
    (
        _BRIDGE,
        [
            "Giuseppe Verdi: He was born in Italy.",
            "Aida: It was first performed in Cairo.",
            "Aida: It is an opera that Giuseppe Verdi composed.",
        ],
        (2, 0),
        "Italy",
    ),
    (
        _COMPARISON,
        [
            "Rhine: It is 1,230 km long.",
            "Seine: It flows through Paris.",
            "Seine: It is 775 km long.",
        ],
        (0, 2),
        "the Rhine",
    ),
)


class Item(NamedTuple):
    """What comes into the chain; "" ends it."""

    text: str
    is_fact: bool = False  # in brackets, or as it lies in the index
    row: int | None = None  # of the fact, where it is known


def construct(
    question: str, chain: Sequence[str], shown: Sequence[int], proposed: Sequence[int],
    params: "Params", library: Library,
) -> Part[Item]:  # fmt: skip
    """The chain's next item: written, chosen, or the aligner's best that is not there yet.

    ``shown`` are the best rows of the pool, ``proposed`` this round's best.
    """
    texts = library.facts.texts
    if params.constructor == "aligner":
        row = next((row for row in proposed if texts[row] not in chain), None)
        return Item("") if row is None else Item(texts[row], True, row)
    choosing = params.constructor == "llm_choice"
    by_text: dict[str, int] = {}  # an equal text is shown once, as its best row
    for row in shown:
        by_text.setdefault(texts[row], row)
    if choosing:
        by_text = {t: row for t, row in by_text.items() if t not in chain}
    rows = list(by_text.values())[: params.choices if choosing else None]
    prompt, options = fit_facts(question, chain, rows, params, library)
    if not choosing:
        reply = yield LLM(Request(prompt, params.item_tokens, STOP))
        return read_item(reply.text, are_triples=library.facts.unit == "triple")
    if not options:
        return Item("")
    chosen = yield Choice(prompt, options, length_weights(options, params, library))
    return Item(texts[rows[chosen]], True, rows[chosen])


def fit_facts(
    question: str, chain: Sequence[str], rows: Sequence[int], params: "Params", library: Library
) -> tuple[str, list[str]]:
    """The prompt with the first facts, as many as fit into it, and these as options.

    Where they are chosen from, the options count as part of the prompt. Facts and items are cut
    like passages: one that is a document would leave no room for others.
    """
    facts, count = library.facts, library.count_tokens
    whole = [Passage("", "", text) for text in [*chain, *(facts.texts[row] for row in rows)]]
    cut = [p.text for p in cut_passages(whole, params.passage_tokens, count)]
    chain, texts = cut[: len(chain)], cut[len(chain) :]

    def prompt(n: int) -> str:
        return chain_prompt(question, texts[:n], chain, are_triples=facts.unit == "triple")

    options = [f" {link(text)}" for text in texts]
    chosen_from = params.constructor == "llm_choice" and options
    lengths = np.cumsum([0, *count(options)]) if chosen_from else np.zeros(len(texts) + 1)
    fits, over = 0, len(texts) + 1
    while over - fits > 1:  # a prompt grows with its facts; all of them are tried first
        n = len(texts) if over > len(texts) else (fits + over) // 2
        within = count([prompt(n)])[0] + lengths[n] <= params.prompt_tokens
        fits, over = (n, over) if within else (fits, n)
    return prompt(fits), options[:fits]


def read_item(text: str, *, are_triples: bool = True) -> Item:
    """The first triple of a continuation, or else its first sentence: a fact where facts are that,
    unless it states the answer."""
    if are_triples and (triples := parse_triples(text)):
        return Item(triples[0].text, True)
    text = text.lstrip(" .,;\n")
    start, end = first_sentence(text)
    item = text[start:end].rstrip(" .")
    return Item(item, not are_triples and bool(item) and stated_answer(item) is None)


def length_weights(options: Sequence[str], params: "Params", library: Library) -> tuple[float, ...]:
    """What each option's probability counts: e^(length_bonus x tokens), the longest once."""
    lengths = library.count_tokens(list(options))
    return tuple(math.exp(params.length_bonus * (n - max(lengths))) for n in lengths)


# -- the prompt -----------------------------------------------------------------------------------


def chain_prompt(
    question: str, facts: Sequence[str], chain: Sequence[str], *, are_triples: bool = True
) -> str:
    """The prompt for the next link of a chain; what follows is " <a; r; b>. So the answer is: b".

    Facts stand best first, one a line. ``chain`` is what the thought holds already: the model
    goes on from there.
    """
    shots = [
        f"{_block(asked, shown, [shown[i] for i in steps])} So the answer is: {answer}."
        for asked, shown, steps, answer in (_TRIPLES if are_triples else _SENTENCES)
    ]
    return "\n\n".join([*shots, _block(question, facts, chain)])


def _block(question: str, facts: Sequence[str], chain: Sequence[str]) -> str:
    lines = ["Facts:", *map(line, facts), f"Question: {line(question)}", "Thought:"]
    return "\n".join(lines) + "".join(f" {link(item)}" for item in chain)


def link(item: str) -> str:
    """A fact as it stands in a thought."""
    return f"{line(item).rstrip('.')}."


def line(text: str) -> str:
    """``text`` on one line: a line break would end the thought early."""
    return " ".join(text.split())
