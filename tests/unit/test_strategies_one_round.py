"""HyDE, sub-questions and Self-RAG's decision: exactly what they ask for, step by step."""

import pytest
from pydantic import ValidationError
from strategy_worlds import params_of, passage, play

from stages.effects import LLM, Choice, Hint, Search
from stages.prompts import (
    NO_YES,
    STOP,
    hypothesis_prompt,
    look_up_prompt,
    rag_prompt,
    subquestions_prompt,
)
from stages.serve.reading import rank_together
from stages.serve.strategies import hyde, self_rag, subquestions
from stages.serve.strategies.subquestions import read_subquestions
from stages.types import Hit, Request

Q = "Who composed Aida?"


# -- HyDE -------------------------------------------------------------------------------------


def test_hyde_searches_with_the_mean_of_question_and_passages() -> None:
    query = (Q, "Puccini composed it.", "An opera.")
    played = play(
        hyde, Q, says=[" Puccini composed it.", " An opera. ", " Verdi"], hypotheses=2, k=5,
        finds={query: "aida rhine"}, combine="mean", encoder="e", passages=1,
    )  # fmt: skip
    made_up = LLM(Request(hypothesis_prompt(Q), 512, STOP, temperature=0.7))
    assert played.asked == [
        Hint(Q), made_up, made_up,
        Search(query, 1), Search(query, 5, unit="document"),
        LLM(Request(rag_prompt(Q, [passage("aida")]), 16, STOP)),
    ]  # fmt: skip
    assert played.outcome.answer == "Verdi"
    assert played.outcome.memory == "Puccini composed it.\nAn opera."
    assert played.outcome.docids == ["aida#0"]
    assert played.outcome.hits == [Hit("aida", 9.0), Hit("rhine", 8.0)]


def test_hyde_on_a_word_index_searches_with_one_text() -> None:
    played = play(hyde, Q, says=["It is by Verdi.", "x"], hypotheses=1)
    assert played.queries == [f"{Q} It is by Verdi."]


@pytest.mark.parametrize("combine", ["mean", "text"])
@pytest.mark.parametrize("says", [[], ["", "  "]])
def test_hyde_without_a_passage_is_retrieval_with_the_question(combine, says) -> None:
    played = play(
        hyde, Q, says=[*says, "x"], combine=combine, encoder="e", hypotheses=len(says)
    )  # fmt: skip
    assert played.queries == [Q]


def test_hyde_of_vectors_needs_an_encoder_when_it_is_read() -> None:
    with pytest.raises(ValidationError, match="combine: mean needs a dense index"):
        params_of(hyde, combine="mean")


# -- sub-questions ----------------------------------------------------------------------------


def test_sub_questions_are_searched_at_once_and_their_rankings_merged() -> None:
    one, two = "How old is Ann?", "How old is Bo?"
    played = play(
        subquestions, Q, says=[f" {one} {two}", "9"], finds={one: "aida rhine", two: "rhine verdi"},
        passages=2,
    )  # fmt: skip
    assert played.story == [
        ("hint", Q), ("llm", None), ("search", one), ("search", two), ("llm", None)
    ]  # fmt: skip
    # rhine: 1/(60+2) + 1/(60+1); aida: 1/(60+1); verdi: 1/(60+2)
    best = [("rhine", 1 / (60 + 2) + 1 / (60 + 1)), ("aida", 1 / (60 + 1)), ("verdi", 1 / (60 + 2))]
    assert played.outcome.hits == [Hit(*hit) for hit in best]
    assert played.outcome.docids == ["rhine#0", "aida#0"]
    assert played.prompts == [
        subquestions_prompt(Q), rag_prompt(Q, [passage("rhine"), passage("aida")])
    ]  # fmt: skip
    assert (played.outcome.memory, played.outcome.stop_reason) == (f"{one}\n{two}", "fixed")


@pytest.mark.parametrize("reply", ["", "I do not know.", "- first\n- second"])
def test_a_reply_without_a_question_leaves_the_question_itself(reply) -> None:
    played = play(subquestions, Q, says=[reply, "x"], finds={Q: "aida"})
    assert played.queries == [Q] and played.outcome.stop_reason == "no_query"
    assert played.outcome.hits == [Hit("aida", 9.0)], "one ranking is itself"


def test_sub_questions_are_at_most_so_many() -> None:
    reply = " ".join(f"What is {c}?" for c in "abcdef")
    assert len(play(subquestions, Q, says=[reply, "x"], subquestions=3).queries) == 3


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        (" Who? Where? Who?", ["Who?", "Where?"]),
        ("Is he from the U.S. or from St. Louis? Yes.", ["Is he from the U.S. or from St. Louis?"]),
        ("ライン川の長さは？セーヌ川の長さは？", ["ライン川の長さは？", "セーヌ川の長さは？"]),
        ("ما هي عاصمة مصر؟", ["ما هي عاصمة مصر؟"]),
    ],
)
def test_sub_questions_are_sentences_that_end_as_questions(reply, parts) -> None:
    assert read_subquestions(reply) == parts


def test_rankings_merge_by_reciprocal_rank_and_ties_go_to_the_larger_docid() -> None:
    ab, ba = [[Hit(d, 1.0) for d in docs] for docs in ("ab", "ba")]
    assert rank_together([ab, ba], 9) == [
        Hit("b", 1 / (60 + 2) + 1 / (60 + 1)), Hit("a", 1 / (60 + 1) + 1 / (60 + 2))
    ]  # fmt: skip
    assert rank_together([ab], 1) == ab[:1] and rank_together([], 3) == []


# -- Self-RAG's decision ----------------------------------------------------------------------


def test_self_rag_retrieves_where_the_model_says_so() -> None:
    played = play(self_rag, Q, chooses=[1], says=["Verdi"], finds={Q: "aida"}, delta=0.3)
    assert played.asked[:2] == [Hint(Q), Choice(look_up_prompt(Q), NO_YES, (0.3, 1 - 0.3))]
    assert played.story == [("hint", Q), ("choice", None), ("search", Q), ("llm", None)]
    assert played.prompts[1] == rag_prompt(Q, [passage("aida")])
    assert played.outcome.hits == [Hit("aida", 9.0)] and played.outcome.memory == "retrieved"


def test_self_rag_answers_without_passages_where_not() -> None:
    played = play(self_rag, Q, chooses=[0], says=["Verdi"])
    assert played.story == [("hint", Q), ("choice", None), ("llm", None)]
    assert played.prompts[1] == rag_prompt(Q, [])
    assert played.outcome.hits == [] and played.outcome.memory == "not retrieved"


@pytest.mark.parametrize(("delta", "queries"), [(0.0, [Q]), (1.0, [])])
def test_self_rag_does_not_ask_where_delta_decides(delta, queries) -> None:
    played = play(self_rag, Q, says=["Verdi"], delta=delta)
    assert played.queries == queries and len(played.prompts) == 1
