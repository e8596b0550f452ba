"""FLARE: look ahead one sentence; where the model is unsure of it, search, and write it again.

Jiang et al., Active Retrieval Augmented Generation, EMNLP 2023 (FLARE-direct). The next sentence
s of the answer is accepted if every token of it has a probability of theta or more. Otherwise it
becomes a query, either with its tokens below beta left out (``masked``) or as questions, one for
each span of such tokens (``questions``); what is found replaces the passages shown, and the
sentence is written anew. That sentence, not the look-ahead, joins the answer.

theta = 0 never retrieves after the first search, with the question; theta above 1 retrieves at
every sentence. The hint lasts over both calls of the first round, as in TeleRAG.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt

from stages.effects import LLM, BudgetSpent, Hint, Outcome, Question, Steps
from stages.prompts import STOP, fit_passages, reason_prompt, span_question_prompt
from stages.serve.asked import Library
from stages.serve.reading import (
    Part,
    Reads,
    first_sentence,
    rank_together,
    say,
    searches,
    show,
    stated_answer,
)
from stages.spans import clip_spans
from stages.types import Hit, Passage, Request, Span

TRACED = True


class Params(Reads):
    """A round is a look-ahead, and if that is in doubt a query, a search and the sentence anew."""

    strategy: Literal["flare"]
    query: Literal["masked", "questions"] = "masked"  # the paper's two; TeleRAG asks questions
    theta: float = Field(0.8, ge=0)  # the least probability of an accepted sentence's tokens
    beta: float = Field(0.4, ge=0)  # below it, a token is no part of a masked query
    sentence_tokens: PositiveInt = 64  # of a look-ahead
    question_tokens: PositiveInt = 32  # of a question about a span; ours
    sentences: PositiveInt = 8  # of an answer, at the most; the paper: 256 tokens


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The answer that the last sentence states; if none does, what the model says it is."""
    passages: list[Passage] = []
    runs: list[Sequence[Hit]] = []
    said: list[str] = []  # the answer so far
    answer, stop_reason = None, "fixed"

    def write_prompt(shown: Sequence[Passage], after: str = "") -> str:
        return reason_prompt(question.text, shown, " ".join([*said, after]), params.order)

    def fitting() -> list[Passage]:
        return fit_passages(passages, params.prompt_tokens, library.count_tokens, write_prompt)

    def next_sentence() -> LLM:
        prompt, asked = write_prompt(fitting()), (params.theta, params.beta)
        return LLM(Request(prompt, params.sentence_tokens, STOP, doubt_below=asked))

    try:
        hits, run = yield searches(question.text, params)
        passages, runs = show(hits, params, library), [run]
        yield Hint(question.text)
        for _ in range(params.sentences):
            reply = yield next_sentence()
            start, end = first_sentence(reply.text)
            unsure, weak = (clip_spans(spans, start, end) for spans in reply.doubts)
            if unsure:
                asked = yield from write_queries(said, reply.text[start:end], weak, params)
                queries = asked or [question.text]
                found = yield [search for query in queries for search in searches(query, params)]
                passages = show(rank_together(found[0::2], params.passages), params, library)
                runs += found[1::2]
                reply = yield next_sentence()
                start, end = first_sentence(reply.text)
            sentence, rest = reply.text[start:end], reply.text[end:].strip()
            if not sentence:
                stop_reason = "empty_gen"
                break
            if sentence in said:
                stop_reason = "converged"  # the paper has no such rule; greedy, it comes for ever
                break
            said.append(sentence)
            if (answer := stated_answer(sentence)) is not None:
                stop_reason = "answer_marker"
                break
            if reply.finish != "length" and not rest:
                stop_reason = "end_of_text"
                break
    except BudgetSpent:
        pass  # answer from what is said
    shown = fitting()
    final = write_prompt(shown, "So the answer is")
    if question.options or answer is None:
        try:
            answer = yield from say(question, final, params)
        except BudgetSpent:
            answer = ""
    docids = [p.docid for p in shown]
    return Outcome(answer, " ".join(said), docids, rank_together(runs, params.k), stop_reason)


def write_queries(
    said: Sequence[str], ahead: str, weak: Sequence[Span], params: Params
) -> Part[list[str]]:
    """What to search for when ``ahead`` is in doubt; nothing if nothing of it is left."""
    if params.query == "masked" or not weak:
        masked = mask(ahead, weak)
        return [masked] if masked else []
    text = " ".join([*said, ahead])
    prompts = [span_question_prompt(text, ahead[start:end]) for start, end in weak]
    replies = yield [LLM(Request(p, params.question_tokens, STOP)) for p in prompts]
    return list(dict.fromkeys(asked for reply in replies if (asked := reply.text.strip())))


def mask(text: str, spans: Sequence[Span]) -> str:
    """``text`` without these spans."""
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return " ".join(" ".join([*kept, text[at:]]).split())
