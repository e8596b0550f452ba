"""IRCoT: search, write one sentence of reasoning, search with that sentence, and so on.

Trivedi et al., Interleaving Retrieval with Chain-of-Thought Reasoning for Knowledge-Intensive
Multi-Step Questions, ACL 2023. Passages accumulate, at most 15 and one of a title; those that
are there stay. The chain ends with a sentence that says "answer is", with an empty one, or at its
limit; then the reader answers from all passages (the chain only finds them). With 0 sentences it
is one-shot RAG.

The next query is the last sentence alone. Passages are shown latest round first: beside the
question, and where a prompt is too long the oldest are left out.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from stages.effects import LLM, BudgetSpent, Hint, Outcome, Question, Steps
from stages.prompts import STOP, fit_passages, reason_prompt
from stages.serve.asked import Library
from stages.serve.reading import (
    Reads,
    first_sentence,
    rank_together,
    read_last,
    searches,
    show,
    stated_answer,
)
from stages.types import Hit, Passage, Request

TRACED = True


class Params(Reads):
    """A round is a search and a sentence; the reader comes last."""

    strategy: Literal["ircot"]
    passages: PositiveInt = 6  # of a search
    sentences: NonNegativeInt = 8  # of the chain, at the most
    most_passages: PositiveInt = 15  # in all
    one_per_title: bool = True  # of the passages
    sentence_tokens: PositiveInt = 64  # of a sentence; ours


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from everything that the chain found."""
    rounds: list[list[Passage]] = []  # what each search added
    runs: list[Sequence[Hit]] = []
    chain: list[str] = []
    query, stop_reason = question.text, "fixed"

    def prompt(shown: Sequence[Passage]) -> str:
        return reason_prompt(question.text, shown, " ".join(chain), params.order)

    try:
        for t in range(params.sentences + 1):
            hits, run = yield searches(query, params)
            rounds.append(choose_new(show(hits, params, library), rounds, params))
            runs.append(run)
            if t == params.sentences:
                break
            yield Hint(query)
            shown = fit_passages(
                latest_first(rounds), params.prompt_tokens, library.count_tokens, prompt
            )
            reply = yield LLM(Request(prompt(shown), params.sentence_tokens, STOP))
            start, end = first_sentence(reply.text)
            query = reply.text[start:end]
            if not query:
                stop_reason = "empty_gen"
                break
            if query in chain:
                stop_reason = "converged"  # the paper has no such rule; greedy, it comes for ever
                break
            chain.append(query)
            if stated_answer(query) is not None:
                stop_reason = "answer_marker"
                break
    except BudgetSpent:
        pass  # read what there is
    answer, shown = yield from read_last(question, latest_first(rounds), params, library)
    return Outcome(
        answer, " ".join(chain), [p.docid for p in shown], rank_together(runs, params.k),
        stop_reason,
    )  # fmt: skip


def choose_new(
    found: Sequence[Passage], rounds: Sequence[Sequence[Passage]], params: Params
) -> list[Passage]:
    """Of the passages found those that are new, by title if one of each is wanted, within room."""

    def name(passage: Passage) -> str:
        return (params.one_per_title and passage.title) or passage.docid

    known = {name(p) for of_round in rounds for p in of_round}
    new: dict[str, Passage] = {}
    for passage in found:
        if name(passage) not in known:
            new.setdefault(name(passage), passage)
    room = params.most_passages - sum(map(len, rounds))
    return list(new.values())[:room]


def latest_first(rounds: Sequence[Sequence[Passage]]) -> list[Passage]:
    """All passages: of the latest round first, and within a round best first."""
    return [p for of_round in reversed(rounds) for p in of_round]
