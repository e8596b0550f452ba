"""ITER-RETGEN, iterative decomposition and IRCoT: rounds, what they keep, when they stop."""

import pytest
from strategy_worlds import passage, play

from stages.effects import LLM, Choice, Hint, Search
from stages.prompts import NO_YES, STOP, enough_prompt, rag_prompt, reason_prompt, step_prompt
from stages.serve.reading import first_sentence, stated_answer
from stages.serve.strategies import ircot, iter_retgen, iterative
from stages.types import Hit, Passage, Request

Q = "In which country was the composer of Aida born?"


# -- ITER-RETGEN ------------------------------------------------------------------------------


def test_iter_retgen_searches_with_question_and_last_answer_and_replaces() -> None:
    second = f"{Q} Verdi"
    played = play(
        iter_retgen, Q, says=[" Verdi", " Italy"], finds={Q: "aida rhine", second: "verdi aida"},
        rounds=2, passages=1, k=2,
    )  # fmt: skip
    assert played.asked == [
        Search(Q, 1), Search(Q, 2, unit="document"), Hint(Q),
        LLM(Request(rag_prompt(Q, [passage("aida")]), 16, STOP)),
        Search(second, 1), Search(second, 2, unit="document"),
        LLM(Request(rag_prompt(Q, [passage("verdi")]), 16, STOP)),
    ]  # fmt: skip
    assert played.outcome.answer == "Italy" and played.outcome.memory == "Verdi\nItaly"
    assert played.outcome.docids == ["verdi#0"], "replaced, not accumulated"
    assert played.outcome.hits == [Hit("verdi", 9.0), Hit("aida", 8.0)]


def test_iter_retgen_hints_each_rounds_query_but_for_the_last() -> None:
    played = play(iter_retgen, Q, says=["a", "b", "c"])
    hints = [e.query for e in played.asked if isinstance(e, Hint)]
    assert played.queries == [Q, f"{Q} a", f"{Q} b"] and hints == played.queries[:-1]


def test_iter_retgen_after_an_empty_answer_asks_the_question_again() -> None:
    assert play(iter_retgen, Q, says=["", "x"], rounds=2).queries == [Q, Q]


# -- iterative decomposition ------------------------------------------------------------------


def test_iterative_answers_steps_until_the_judge_has_enough() -> None:
    one, two = "Who composed Aida?", "Where was Verdi born?"
    played = play(
        iterative, Q, says=[f" {one} Puccini", "Verdi", two, "Italy", "Italy"], chooses=[0, 1],
        finds={one: "aida", two: "verdi"},
    )  # fmt: skip
    assert played.story == [
        ("hint", Q), ("llm", None), ("search", one), ("llm", None), ("choice", None),
        ("hint", one), ("llm", None), ("search", two), ("llm", None), ("choice", None),
        ("llm", None),
    ]  # fmt: skip
    steps = [(one, "Verdi"), (two, "Italy")]
    notes = [Passage("", two, "Italy"), Passage("", one, "Verdi")]
    assert played.prompts == [
        step_prompt(Q, []), rag_prompt(one, [passage("aida")]), enough_prompt(Q, steps[:1]),
        step_prompt(Q, steps[:1]), rag_prompt(two, [passage("verdi")]), enough_prompt(Q, steps),
        rag_prompt(Q, [*notes, passage("verdi"), passage("aida")]),
    ]  # fmt: skip
    assert [e.options for e in played.asked if isinstance(e, Choice)] == [NO_YES, NO_YES]
    assert played.outcome.stop_reason == "judge"
    assert played.outcome.docids == ["verdi#0", "aida#0"], "notes are no passages"
    assert played.outcome.memory == f"{one} Verdi\n{two} Italy"
    assert played.outcome.hits == [Hit("verdi", 1 / 61), Hit("aida", 1 / 61)]


def test_iterative_shows_a_passage_once_at_its_latest() -> None:
    played = play(
        iterative, Q, says=["A?", "a", "B?", "b", "x"], chooses=[0, 0], rounds=2,
        finds={"A?": "aida rhine", "B?": "aida verdi"},
    )  # fmt: skip
    assert played.outcome.docids == ["aida#0", "verdi#0", "rhine#0"]
    assert played.outcome.stop_reason == "fixed"


@pytest.mark.parametrize(
    ("says", "chooses", "reason", "queries"),
    [
        (["", "x"], [], "no_query", [Q]),  # no first step: one-shot RAG
        (["A?", "a", "  ", "x"], [0], "no_query", ["A?"]),
        (["A?", "a", "A?", "x"], [0], "converged", ["A?"]),
    ],
)
def test_iterative_stops_without_a_new_step(says, chooses, reason, queries) -> None:
    played = play(iterative, Q, says=says, chooses=chooses)
    assert (played.outcome.stop_reason, played.queries) == (reason, queries)


# -- IRCoT ------------------------------------------------------------------------------------


def test_ircot_searches_with_its_last_sentence_and_accumulates() -> None:
    one, two = "Aida is by Verdi.", "So the answer is Italy."
    played = play(
        ircot, Q, says=[f" {one} He was born.", f" {two}", " Italy"],
        finds={Q: "aida rhine", one: "verdi aida"}, passages=2,
    )  # fmt: skip
    assert played.story == [
        ("search", Q), ("hint", Q), ("llm", None), ("search", one), ("hint", one), ("llm", None),
        ("llm", None),
    ]  # fmt: skip
    first, both = [passage("aida"), passage("rhine")], [*map(passage, ("verdi", "aida", "rhine"))]
    assert played.prompts == [
        reason_prompt(Q, first), reason_prompt(Q, both, one), rag_prompt(Q, both)
    ]  # fmt: skip
    assert played.outcome.stop_reason == "answer_marker"
    assert played.outcome.memory == f"{one} {two}"
    assert played.outcome.docids == ["verdi#0", "aida#0", "rhine#0"]
    # aida: 1/(60+1) + 1/(60+2); verdi: 1/(60+1); rhine: 1/(60+2)
    assert [h.docid for h in played.outcome.hits] == ["aida", "verdi", "rhine"]


@pytest.mark.parametrize(
    ("says", "reason", "n_searches"),
    [
        (["", "x"], "empty_gen", 1),
        (["A is b.", " \t", "x"], "empty_gen", 2),
        (["A is b.", "A is b.", "x"], "converged", 2),
        (["A is b.", "B is c.", "x"], "fixed", 3),
        (["The answer is: 7", "x"], "answer_marker", 1),
        (["The answer is.", "I see.", "x"], "fixed", 3),  # it says none
    ],
)
def test_ircot_stops(says, reason, n_searches) -> None:
    played = play(ircot, Q, says=says, sentences=2)
    assert (played.outcome.stop_reason, len(played.queries)) == (reason, n_searches)


def test_a_marker_in_a_passage_or_in_the_question_ends_nothing() -> None:
    question = "What is the film whose motto is: the answer is 42?"
    played = play(
        ircot, question, says=["It is a film.", "x"], sentences=1, finds={question: "etna"}
    )
    assert played.outcome.stop_reason == "fixed"


def test_ircot_keeps_what_is_there_within_its_limit() -> None:
    finds = {Q: "aida rhine", "S.": "lyon etna fuji"}
    played = play(ircot, Q, says=["S.", "x"], finds=finds, sentences=1, most_passages=3)
    assert played.outcome.docids == ["lyon#0", "aida#0", "rhine#0"], "room for one more"


@pytest.mark.parametrize(
    ("one_per_title", "docids"),
    [(True, "lyon etna-2 fuji"), (False, "lyon etna-2 fuji etna")],
)
def test_ircot_takes_one_passage_of_a_title(one_per_title, docids) -> None:
    finds = {Q: "etna-2 fuji etna", "S.": "etna lyon etna-2"}
    played = play(
        ircot, Q, says=["S.", "x"], finds=finds, sentences=1, one_per_title=one_per_title,
        passages=3,
    )  # fmt: skip
    assert played.outcome.docids == [f"{d}#0" for d in docids.split()]


def test_what_does_not_fit_into_a_prompt_is_the_oldest_passages() -> None:
    """Each is at most 8 words with its title; the question and the draft are never cut."""
    finds = {Q: "aida rhine", "Verdi wrote it.": "verdi etna"}
    says = ["Verdi wrote it.", "x"]
    whole = play(ircot, Q, says=says, finds=finds, sentences=1)
    n = len(whole.prompts[-1].split())
    assert whole.outcome.docids == ["verdi#0", "etna#0", "aida#0", "rhine#0"]
    shorter = play(ircot, Q, says=says, finds=finds, sentences=1, prompt_tokens=n - 1)
    assert shorter.outcome.docids == ["verdi#0", "etna#0", "aida#0"]
    least = play(ircot, Q, says=says, finds=finds, sentences=1, prompt_tokens=1)
    assert least.outcome.docids == [] and least.prompts[-1] == rag_prompt(Q, [])
    assert least.prompts[0] == reason_prompt(Q, [])


# -- sentences and answers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" He moved to the U.S. in 1903. Then he died.", "He moved to the U.S. in 1903."),
        ("Dr. A. Smith wrote it. So", "Dr. A. Smith wrote it."),
        ("東京は首都です。人口は多い。", "東京は首都です。"),
        ("without an end", "without an end"),
        ("", ""),
        (" \t ", ""),
    ],
)
def test_the_first_sentence_is_not_cut_at_an_abbreviation(text, sentence) -> None:
    start, end = first_sentence(text)
    assert text[start:end] == sentence


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("So the answer is Canberra.", "Canberra"),
        ("So the answer is: 1.5 million. ", "1.5 million"),
        ("The Answer is No", "No"),
        ("So the answer is", None),
        ("The answers are many.", None),
        ("", None),
    ],
)
def test_the_answer_that_a_sentence_states(sentence, answer) -> None:
    assert stated_answer(sentence) == answer
