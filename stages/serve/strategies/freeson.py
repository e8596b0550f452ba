"""FREESON: reason, say what is missing, and find it by walking through the corpus oneself.

Kim & Kim, FREESON: Retriever-Free Retrieval-Augmented Reasoning via Corpus-Traversing MCTS, arXiv
2505.16409. The model thinks line by line; a thought ends with a sub-query or with the answer. What
a sub-query finds is put behind it, and the model goes on. There is no retriever: a search is a
Monte-Carlo tree search in which the same model writes passages token by token and may only write
what the corpus holds (``stages.serve.traverse``; ``equip`` puts it in the index's place, and all
questions that search grow their trees together).

A thought without a sub-query and without an answer is malformed: its last sentence is the
sub-query. An empty one ends the loop. As in the other loops the reader answers from what was
found, so that methods differ by their evidence alone (the paper's answer is the end of the
trace, which is our ``memory``).

What a walk reads counts as the question's tokens; its rollouts stand beside them in the effect log.
A walk that came to ``walk.max_tokens`` gives what it has found, and the question's stop reason is
``budget_walk``. Under a limit of the question's tokens a walk begins only if its most would fit.

Ours, for a small model: ``search_first`` searches with the question itself before the first
thought, a sub-query that was asked before ends the loop, and ``context`` puts the question before
the sub-query in what the walk is asked. With one search in all, and ``search_first``, it is
one-shot RAG; with none the closed-book reader.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveInt, model_validator

from stages.effects import LLM, BudgetSpent, Outcome, Question, Steps
from stages.gaps import fold
from stages.prompts import STOP
from stages.records import RecordStore
from stages.serve.asked import Library
from stages.serve.reading import Reads, rank_together, read_last, searches, show
from stages.serve.strategies.freeson_prompts import Found, read_thought, thought_prompt
from stages.serve.traverse.walk import Walk
from stages.tools import Tools
from stages.types import Hit, Passage, Request

TRACED = True


class Params(Reads):
    """A round is a thought and a search; the reader comes last."""

    strategy: Literal["freeson"]
    max_search: NonNegativeInt = 4  # searches of a question
    search_first: bool = True  # the question itself is the first sub-query
    context: Literal["query", "question"] = "query"  # question: it stands before the sub-query
    inserted: PositiveInt = 1  # passages of a search that are put behind it; the reader sees all
    thought_tokens: PositiveInt = 48  # of a thought with its sub-query
    walk: Walk = Walk()

    @model_validator(mode="after")
    def _can_walk(self) -> "Params":
        limit = self.budget.max_tokens
        if limit is not None and limit < self.walk.max_tokens and self.max_search:
            raise ValueError(
                f"no walk would begin: budget.max_tokens is {limit}, and a walk may take "
                f"walk.max_tokens, {self.walk.max_tokens}; make that smaller"
            )
        return self


class Trace(NamedTuple):
    """The thoughts so far, and what each found (latest last)."""

    steps: list[Found]
    rounds: list[list[Passage]]
    runs: list[Sequence[Hit]]


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from everything that the walks found."""
    trace, asked = Trace([], [], []), []
    thought, query, stop_reason = "", question.text if params.search_first else "", "fixed"
    try:
        while len(asked) < params.max_search:
            if query:
                behind = params.context == "question" and asked
                hits, run = yield searches(f"{question.text} {query}" if behind else query, params)
                passages = show(hits, params, library)
                asked.append(query)
                trace.rounds.append(passages)
                trace.runs.append(run)
                trace.steps.append(Found(thought, query, passages[: params.inserted]))
                if len(asked) == params.max_search:
                    break  # a further thought could ask for nothing
            prompt = fit_trace(question.text, trace.steps, params, library)
            reply = yield LLM(Request(prompt, params.thought_tokens, STOP))
            thought, query, answer = read_thought(reply.text)
            if answer is not None:
                trace.steps.append(Found(reply.text.strip(), "", []))
                stop_reason = "answer_marker"
                break
            if not query:
                stop_reason = "no_query"
                break
            if fold(query) in map(fold, asked):
                stop_reason = "converged"
                break
    except BudgetSpent:
        pass  # read what there is
    answer, shown = yield from read_last(question, first_of_each(trace.rounds), params, library)
    memory = "\n".join(str(step) for step in trace.steps)
    run = rank_together(trace.runs, params.k) if trace.runs else []
    return Outcome(answer, memory, [p.docid for p in shown], run, stop_reason)


def fit_trace(question: str, steps: Sequence[Found], params: Params, library: Library) -> str:
    """The prompt for the next thought; where it is too long, the oldest findings are left out."""
    steps = list(steps)
    prompt = thought_prompt(question, steps)
    for i in range(len(steps)):
        if library.count_tokens([prompt])[0] <= params.prompt_tokens:
            break
        steps[i] = steps[i]._replace(passages=[])
        prompt = thought_prompt(question, steps)
    return prompt


def first_of_each(rounds: Sequence[Sequence[Passage]]) -> list[Passage]:
    """All passages once: of the latest round first, and within a round best first."""
    found: dict[str, Passage] = {}
    for passage in (p for of_round in reversed(rounds) for p in of_round):
        found.setdefault(passage.docid, passage)
    return list(found.values())


def equip(tools: Tools, params: Params, scorer: Path | None) -> Tools:
    """The index becomes a retriever: the generator walks it, ``scorer`` is the value head.

    Raises:
        QuarryError: the index, the generator and the head do not belong together.
    """
    from stages.serve.traverse.retriever import walking

    return walking(tools, params.walk, scorer, seed=params.seed, records=RecordStore)
