"""RAR²: think about the question, search with the thought, answer from what that finds.

Xu et al., RAR²: Retrieval-Augmented Medical Reasoning via Thought-Driven Retrieval, EMNLP 2025
Findings (arXiv:2509.22713). The thought names what the question only describes, and no option.
Scaling at test time: ``parallel`` draws n thoughts and searches once with all of them in one text;
``iterative`` thinks again about what the last thought found, and each search's passages replace
those before. One thought makes all modes equal; with n = 0 the question is the query: RAG.

Ours: ``fuse: rrf`` searches with each of the parallel thoughts and fuses the rankings (on a dense
index the only way: its encoder would not read past the first thoughts). Of several options the
likeliest is the answer: by its text, as in all strategies (``options``), by its letter, or by the
letter that a generated line states (``text``; if it states none, the answer is empty).

A thought without a word, or one that finds nothing, leaves the question to search with; stop
reasons ``no_query`` and ``no_hits`` flag it.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stages.effects import LLM, BudgetSpent, Choice, Hint, Outcome, Question, Steps
from stages.prompts import STOP, fit_passages
from stages.serve.asked import Library
from stages.serve.reading import Part, Reads, rank_together, read_last, searches, show
from stages.shell import NONE
from stages.thoughts import letter_options, letter_prompt, read_letter, read_thought, think_prompt
from stages.types import Hit, Passage, Request

TRACED = True


class Params(Reads):
    """n thoughts, the searches that they need, one call of the reader."""

    strategy: Literal["rar2"]
    passages: PositiveInt = 8  # shown; the paper tries 1 to 32
    mode: Literal["single", "parallel", "iterative"] = "single"
    n: NonNegativeInt = 1  # thoughts; 0: the question is the query
    fuse: Literal["concatenate", "rrf"] = "concatenate"  # of parallel thoughts
    answer: Literal["options", "letters", "text"] = "options"  # how an option is chosen
    answer_sees_thought: bool = False
    thought_tokens: PositiveInt = 512  # at the most; a thought ends with its line
    temperature: float = Field(0.8, ge=0)  # of thoughts
    top_p: float = Field(0.95, gt=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> "Params":
        if self.mode == "single" and self.n > 1:
            raise ValueError("mode: single has one thought; say parallel or iterative, or n: 1")
        if self.encoder != NONE and self.n > 1 and (self.mode, self.fuse) == (
            "parallel", "concatenate"
        ):  # fmt: skip
            raise ValueError(
                "a dense encoder reads the first tokens of a text alone: later thoughts would be "
                "dropped. Say fuse: rrf, or name an index of words"
            )
        return self


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The answer from what the thoughts find. The memory is the thoughts, one a line."""
    thoughts: list[str] = []
    passages: list[Passage] = []
    run: Sequence[Hit] = []
    flags: set[str] = set()
    parallel = params.mode == "parallel"
    rounds, at_once = (1, params.n) if parallel else (max(1, params.n), min(1, params.n))
    try:
        yield Hint(question.text)
        for _ in range(rounds):
            new = yield from think(question, passages, at_once, params, library)
            thoughts = [*thoughts, *new]
            hits, run, flag = yield from look_up(question, new, params)
            passages = show(hits, params, library)  # replaced, not accumulated
            flags.add(flag)
    except BudgetSpent:
        pass  # answer from what there is
    shown_thought = " ".join(thoughts if parallel else thoughts[-1:])
    answer, shown = yield from choose(question, passages, shown_thought, params, library)
    stop_reason = min(flags - {""}, default="fixed")
    return Outcome(
        answer, "\n".join(thoughts), [p.docid for p in shown if p.docid], run, stop_reason
    )  # fmt: skip


def think(
    question: Question, passages: Sequence[Passage], n: int, params: Params, library: Library
) -> Part[list[str]]:
    """n thoughts, drawn apart; none of them names an option by its letter."""

    def prompt(shown: Sequence[Passage]) -> str:
        return think_prompt(question.text, question.options, shown, params.order)

    if not n:
        return []
    shown = fit_passages(passages, params.prompt_tokens, library.count_tokens, prompt)
    request = Request(
        prompt(shown), params.thought_tokens, STOP, params.temperature, params.top_p
    )  # fmt: skip
    replies = yield [LLM(request)] * n
    return [read_thought(reply.text, len(question.options)) for reply in replies]


def look_up(
    question: Question, thoughts: Sequence[str], params: Params
) -> Part[tuple[Sequence[Hit], Sequence[Hit], str]]:
    """Passages, documents, and a flag if the question had to stand in for its thoughts."""
    queries = [thought for thought in thoughts if thought]
    flag = "no_query" if thoughts and not queries else ""
    if params.fuse == "concatenate" and queries:
        queries = [" ".join(queries)]
    hits, run = yield from find(queries or [question.text], params)
    if queries and not run:
        flag = "no_hits"
        hits, run = yield from find([question.text], params)
    return hits, run, flag


def find(
    queries: Sequence[str], params: Params
) -> Part[tuple[Sequence[Hit], Sequence[Hit]]]:  # fmt: skip
    """What the queries find together: passages to show, documents for the run."""
    found = yield [search for query in queries for search in searches(query, params)]
    return (
        rank_together(found[0::2], params.passages), rank_together(found[1::2], params.k)
    )  # fmt: skip


def choose(
    question: Question, passages: Sequence[Passage], thought: str, params: Params, library: Library
) -> Part[tuple[str, list[Passage]]]:
    """The answer and the passages it was read from; nothing where that is beyond the budget."""
    seen = thought if params.answer_sees_thought else ""
    if params.answer == "options" or not question.options:
        note = [Passage("", "Thought", seen)] if seen else []
        return (yield from read_last(question, [*note, *passages], params, library))

    def prompt(shown: Sequence[Passage]) -> str:
        return letter_prompt(question.text, question.options, shown, seen, params.order)

    shown = fit_passages(passages, params.prompt_tokens, library.count_tokens, prompt)
    try:
        if params.answer == "letters":
            at = yield Choice(prompt(shown), letter_options(question.options))
        else:
            reply = yield LLM(Request(prompt(shown), params.max_tokens, STOP))
            at = read_letter(reply.text, len(question.options))
    except BudgetSpent:
        return "", []
    return ("" if at is None else question.options[at]), shown
