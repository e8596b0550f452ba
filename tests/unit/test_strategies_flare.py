"""FLARE: look-ahead, doubt, query, and the sentence that counts."""

import pytest
from strategy_worlds import passage, play

from stages.effects import LLM, Choice, Hint
from stages.prompts import STOP, reason_prompt, span_question_prompt
from stages.serve.strategies import flare
from stages.serve.strategies.flare import mask
from stages.types import Hit, Request

Q = "Where was Verdi born?"
SURE, UNSURE = "He was a composer.", "He was born in Spain."
END = "So the answer is Italy."


def at(text: str, *words: str):
    """Doubt about these words of one text, at any threshold above 0."""

    def unsure(said: str, threshold: float):
        places = [(said.find(w), said.find(w) + len(w)) for w in words]
        return places if text in said and threshold > 0 else []

    return unsure


def test_a_sentence_without_doubt_is_accepted_and_nothing_is_searched() -> None:
    played = play(flare, Q, says=[f" {SURE} {END}", f" {END}"], finds={Q: "verdi"})
    assert played.story == [("search", Q), ("hint", Q), ("llm", None), ("llm", None)]
    shown = [passage("verdi")]
    assert [e for e in played.asked if isinstance(e, LLM)] == [
        LLM(Request(reason_prompt(Q, shown, draft), 64, STOP, doubt_below=(0.8, 0.4)))
        for draft in ("", SURE)
    ]  # fmt: skip
    assert played.outcome.answer == "Italy" and played.outcome.memory == f"{SURE} {END}"
    assert played.outcome.stop_reason == "answer_marker"


def test_a_doubtful_sentence_is_a_query_without_its_doubtful_words_and_is_written_anew() -> None:
    better = "He was born in Italy."
    played = play(
        flare, Q, says=[f" {UNSURE} Yes.", f" {better} And", END],
        finds={Q: "aida", "He was born in .": "verdi"}, unsure=at(UNSURE, "Spain"),
    )  # fmt: skip
    assert played.story == [
        ("search", Q), ("hint", Q), ("llm", None), ("search", "He was born in ."), ("llm", None),
        ("llm", None),
    ]  # fmt: skip
    assert played.prompts == [
        reason_prompt(Q, [passage("aida")]), reason_prompt(Q, [passage("verdi")]),
        reason_prompt(Q, [passage("verdi")], better),
    ]  # fmt: skip
    assert played.outcome.memory == f"{better} {END}", "the sentence written anew counts"
    assert played.outcome.docids == ["verdi#0"], "replaced"
    assert played.outcome.hits == [Hit("verdi", 1 / 61), Hit("aida", 1 / 61)], "of all searches"


def test_doubt_behind_the_first_sentence_does_not_count() -> None:
    played = play(flare, Q, says=[f"{SURE} {UNSURE}", END], unsure=at(UNSURE, "Spain"))
    assert played.queries == [Q]


def test_doubt_makes_a_question_of_each_span() -> None:
    played = play(
        flare, Q, says=[SURE, UNSURE, " Where? ", " Who?", END], query="questions",
        finds={Q: "aida", "Where?": "verdi", "Who?": "etna verdi"}, finish="length", passages=1,
        unsure=at(UNSURE, "He", "Spain"),
    )  # fmt: skip
    assert played.queries == [Q, "Where?", "Who?"]
    text = f"{SURE} {UNSURE}"
    assert played.prompts[2:4] == [span_question_prompt(text, w) for w in ("He", "Spain")]
    assert played.outcome.docids == ["verdi#0"]
    hints = [e.query for e in played.asked if isinstance(e, Hint)]
    assert hints == [Q], "in the first round alone"


def test_theta_decides_whether_and_beta_what_of_it_is_searched() -> None:
    """Below theta, but not below beta: the whole sentence is the query."""

    def unsure(said: str, threshold: float):
        return [(0, 2)] if said == UNSURE and threshold > 0.5 else []

    played = play(flare, Q, says=[UNSURE, END], unsure=unsure, theta=0.6, beta=0.5)
    assert played.queries == [Q, UNSURE]


def test_where_nothing_is_left_to_search_for_it_is_the_question() -> None:
    everything = at(UNSURE, UNSURE)
    assert play(flare, Q, says=[UNSURE, END], unsure=everything).queries == [Q, Q]
    empty = play(flare, Q, says=[UNSURE, "", END], unsure=everything, query="questions")
    assert empty.queries == [Q, Q]


@pytest.mark.parametrize(
    ("says", "finish", "reason", "draft"),
    [
        (["", " Italy."], "stop", "empty_gen", ""),
        ([f"{SURE}", " Italy."], "stop", "end_of_text", SURE),
        ([f"{SURE} And", f"{SURE} And", "x"], "stop", "converged", SURE),
        ([f"A{i}" for i in range(3)] + ["x"], "length", "fixed", "A0 A1 A2"),
    ],
)
def test_flare_stops_and_asks_for_the_answer_that_no_sentence_states(
    says, finish, reason, draft
) -> None:
    played = play(flare, Q, says=says, finish=finish, sentences=3)
    assert (played.outcome.stop_reason, played.outcome.memory) == (reason, draft)
    assert played.outcome.answer == says[-1].strip()
    asked = f"{draft} So the answer is".strip()
    assert played.asked[-1] == LLM(Request(reason_prompt(Q, [], asked), 16, STOP))


def test_of_options_the_likeliest_after_the_draft_is_chosen() -> None:
    played = play(flare, Q, says=[f"{SURE} {END}", END], options=["Spain", "Italy"], chooses=[1])
    prompt = reason_prompt(Q, [], f"{SURE} {END} So the answer is")
    assert played.asked[-1] == Choice(prompt, [" Spain", " Italy"])
    assert played.outcome.answer == "Italy"


def test_a_mask_takes_out_spans_and_leaves_single_blanks() -> None:
    assert mask("He was born in Spain.", [(11, 20)]) == "He was born ."
    assert mask("a b c", [(0, 1), (2, 3)]) == "c"
    assert mask("a b", [(0, 3)]) == "" and mask("a b", []) == "a b"
