"""Iterative decomposition: ask for one step, search and answer it, ask whether that is enough.

The pipeline "iterative" (Iter) of Lin et al., TeleRAG, arXiv:2502.20969, after LlamaIndex's
multi-step engine: for questions whose steps build on each other. A step is a question; its
answer goes into the next step's prompt. The judge is a choice between " yes" and " no".

At the end the reader is shown the answered steps as passages, latest first, and then what the
steps found, latest first. With 0 rounds, or without a first step, it is one-shot RAG.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from stages.effects import LLM, BudgetSpent, Choice, Hint, Outcome, Question, Steps
from stages.prompts import NO_YES, STOP, enough_prompt, step_prompt
from stages.serve.asked import Library
from stages.serve.reading import (
    Reads,
    first_sentence,
    rank_together,
    read,
    read_last,
    searches,
    show,
)
from stages.types import Hit, Passage, Request

TRACED = True


class Params(Reads):
    """A round is a call for the step, a search, a call for its answer, and a choice."""

    strategy: Literal["iterative"]
    rounds: NonNegativeInt = 3  # at the most
    step_tokens: PositiveInt = 32  # of a step's question; ours


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from the answered steps and their passages."""
    steps: list[tuple[str, str]] = []
    passages: list[Passage] = []  # latest round first
    runs: list[Sequence[Hit]] = []
    stop_reason, guess = "fixed", question.text
    try:
        for _ in range(params.rounds):
            yield Hint(guess)
            prompt = step_prompt(question.text, steps)
            reply = yield LLM(Request(prompt, params.step_tokens, STOP))
            start, end = first_sentence(reply.text)  # what follows would be its answer
            step = reply.text[start:end]
            if not step:
                stop_reason = "no_query"
                break
            if step in [asked for asked, _ in steps]:
                stop_reason = "converged"  # TeleRAG goes on; greedy, it would ask this for ever
                break
            hits, run = yield searches(step, params)
            found = show(hits, params, library)
            passages, guess = _first_of_each([*found, *passages]), step
            runs.append(run)
            answer, _ = yield from read(Question(question.qid, step), found, params, library)
            steps.append((step, answer))
            if (yield Choice(enough_prompt(question.text, steps), NO_YES)):
                stop_reason = "judge"
                break
        if not runs:
            hits, run = yield searches(question.text, params)
            passages, runs = show(hits, params, library), [run]
    except BudgetSpent:
        pass  # answer from what there is; the engine names the limit
    notes = [Passage("", asked, answer) for asked, answer in reversed(steps)]
    answer, shown = yield from read_last(question, [*notes, *passages], params, library)
    return Outcome(
        answer, "\n".join(" ".join(step) for step in steps),
        [p.docid for p in shown if p.docid], rank_together(runs, params.k), stop_reason,
    )  # fmt: skip


def _first_of_each(passages: Sequence[Passage]) -> list[Passage]:
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.docid, passage)
    return list(first.values())
