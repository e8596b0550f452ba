"""Adaptive-Note: exact calls, passages and stop reasons; what a prompt sees; notes of sentences."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from loop_fakes import FakeLLM, FakeSearch, table_bytes
from pydantic import ValidationError
from strategy_worlds import count_words, library_of, params_of, play

from stages.digest import uniform
from stages.effects import Choice, Question
from stages.loop import Answered, Loop, run_loop
from stages.prompts import rag_prompt
from stages.serve.strategies import adaptive_note
from stages.serve.strategies.adaptive_note import write_queries
from stages.serve.strategies.adaptive_note_prompts import (
    compare_prompt,
    init_prompt,
    parse_verdict,
    propose_prompt,
    refine_prompt,
    split_questions,
)
from stages.serve.strategies.adaptive_note_sentences import (
    Sentence,
    capitalised,
    content_words,
    coverage,
    next_entities,
    note_of,
    note_text,
    overlap,
    weigh_words,
)
from stages.tools import Tools
from stages.types import Generation, Hit, Passage

Q = Question("q", "who wrote it?")
TEXTS = {f"d{i:02}": (f"T{i}", f"text {i}") for i in range(60)}


class Scripted(FakeLLM):
    """Notes n0, n1 ..., proposals p0, p1 ...; verdicts as given, all False after the last."""

    def __init__(self, verdicts: Sequence[bool] = (), says: Callable[[str], str | None] = {}.get):
        super().__init__(self.reply)
        self.verdicts, self.says, self.counts = iter(verdicts), says, {"note": 0, "new": 0}

    def reply(self, prompt: str) -> str:
        if (said := self.says(prompt)) is not None:
            return said
        label = prompt.rpartition("\n")[2]
        if label == "New questions:":
            self.counts["new"] += 1
            return f" p{self.counts['new'] - 1}?"
        if label in ("Note:", "Better note:"):
            self.counts["note"] += 1
            return f" n{self.counts['note'] - 1}"
        return " answer"

    def choose(self, prompts, options):
        self.choices += prompts
        return [[-1.0, 0.0] if next(self.verdicts, False) else [0.0, -1.0] for _ in prompts]

    @property
    def prompts(self) -> list[str]:
        return [r.prompt for batch in self.batches for r in batch]


class Found:
    """The n-th distinct query finds the n-th list of passages."""

    fingerprint = "found"

    def __init__(self, *lists: Sequence[int]) -> None:
        self.lists, self.queries = lists, []

    def search(self, queries, k):
        self.queries += [q for q in queries if q not in self.queries]
        found = [self.lists[self.queries.index(q)] for q in queries]
        return [[Hit(f"d{n:02}#0", 1.0 / (1 + i)) for i, n in enumerate(ns[:k])] for ns in found]


def fives(*starts: int) -> Found:
    return Found(*(range(start, start + 5) for start in starts))


def run(llm: FakeLLM, found: Found, question: Question = Q, **values: Any) -> Answered:
    params = params_of(adaptive_note, **values)
    library = library_of(TEXTS, count_words)
    strategy = partial(adaptive_note.strategy, params=params, library=library)
    (answered,) = run_loop(strategy, [question], Tools(llm, found)).answered
    assert answered.error == ""
    return answered


def summary(a: Answered) -> tuple[int, int, str]:
    """Calls of the model, unique passages, why it ended."""
    return a.counts.llm_calls, len(a.outcome.docids), a.outcome.stop_reason


def note_of_run(a: Answered) -> str:
    return a.outcome.memory.split("\n")[0]


# -- the card's checks ------------------------------------------------------------------------


def test_without_steps_it_is_one_note_and_one_answer() -> None:
    llm, found = Scripted(), fives(0)
    a = run(llm, found, steps=0)
    assert summary(a) == (2, 5, "fixed") and a.counts.rounds == 1 and found.queries == [Q.text]
    shown = [Passage(f"d{i:02}#0", f"T{i}", f"text {i}") for i in range(5)]
    notes = Passage("", "Notes", "n0")
    assert llm.prompts == [init_prompt(Q.text, shown, "best_last"), rag_prompt(Q.text, [notes])]
    assert a.outcome.answer == "answer" and a.outcome.memory == "n0"


def test_the_first_rejection_ends_it() -> None:
    a = run(Scripted([True, False]), fives(0, 5, 10), steps=3, fails=1, most_passages=99)
    assert summary(a) == (2 + 3 * 2, 15, "fails")
    assert a.outcome.memory == "n1\naccepted: p0?\nrejected: p1?"


def test_new_passages_every_time_end_it_at_the_limit() -> None:
    a = run(Scripted([True] * 9), fives(0, 5, 10, 15, 20), steps=9)
    assert summary(a) == (2 + 3 * 2, 15, "budget_docs"), "ceil((R - k) / k) = 2 steps"


def test_the_follow_up_searches_once_more_in_full_at_exactly_the_limit() -> None:
    a = run(Scripted([True] * 9), fives(0, 5, 10, 15, 20), steps=9, stop="deepnote")
    assert summary(a) == (2 + 3 * 3, 20, "budget_docs")


def test_room_limits_what_is_taken_only_where_it_is_less_than_k() -> None:
    lists = ([0, 1, 2, 3, 4], [5, 6, 7, 0, 1], [8, 9, 10, 11, 2], [12, 3, 13, 14, 15])
    llm = Scripted([True] * 9)
    a = run(llm, Found(*lists), steps=9)
    assert summary(a) == (2 + 3 * 3, 15, "budget_docs")
    refined = [p.rpartition("\n\n")[2] for p in llm.prompts if p.endswith("Better note:")]
    shown = [sorted(int(w[1:-1]) for w in p.split() if w[0] == "T" and w[-1] == ".")
             for p in refined]  # fmt: skip
    assert shown == [[0, 1, 5, 6, 7], [2, 8, 9, 10, 11], [12, 13, 14]], "old ones are pasted again"


def test_rejections_add_up_and_need_not_follow_each_other() -> None:
    lists = [range(5), *([i, 1, 2, 3, 4] for i in range(5, 20))]
    values = {"stop": "deepnote", "steps": 9}
    a = run(Scripted([False, True, False, True]), Found(*lists), **values)
    assert summary(a) == (2 + 3 * 3, 8, "fails")
    never = run(Scripted(), Found(*lists), stop="never", steps=9)
    assert summary(never) == (2 + 3 * 9, 14, "fixed")


def test_a_rejected_note_is_never_seen_again() -> None:
    llm = Scripted([False, True, False, False])
    lists = [range(5), *([i, 1, 2, 3, 4] for i in range(5, 20))]
    run(llm, Found(*lists), steps=4, fails=9)
    kept = ["n0", "n0", "n2", "n2"]  # n1 and n3 are rejected
    for label in ("New questions:", "Better note:"):
        blocks = [p.rpartition("\n\n")[2] for p in llm.prompts if p.endswith(label)]
        assert [b.split("\nNote: ")[1].split("\n")[0] for b in blocks] == kept
    assert [c.rpartition("\nNote 1: ")[2].split("\n")[0] for c in llm.choices] == kept
    assert llm.prompts[-1] == rag_prompt(Q.text, [Passage("", "Notes", "n2")])


@pytest.mark.parametrize("length", [0, 10, 480, 499, 500, 501, 2000])
def test_a_search_text_is_500_characters_of_proposal_and_then_question(length) -> None:
    proposal = "p" * length
    (text,) = write_queries(proposal, Q, params_of(adaptive_note))
    whole = f"{proposal}\n{Q.text}" if proposal else Q.text
    assert text == whole[:500] and text.startswith(proposal[:500])
    assert (Q.text in text) == (length <= 500 - 1 - len(Q.text))


@pytest.mark.parametrize("seed", range(20))
def test_calls_follow_from_steps_and_passages_never_pass_the_limit(seed) -> None:
    rng = np.random.default_rng(seed)
    lists = [rng.choice(60, 5, replace=False).tolist() for _ in range(12)]
    llm = Scripted((rng.random(12) < 0.7).tolist())
    a = run(llm, Found(*lists), steps=int(rng.integers(0, 9)), fails=3)
    steps = a.outcome.memory.count("\n")
    assert a.counts.llm_calls == 2 + 3 * steps and a.counts.rounds == 1 + steps
    assert len(a.outcome.docids) <= 15 and len(set(a.outcome.docids)) == len(a.outcome.docids)
    asked = [p.rpartition("Asked: ")[2].split("\n")[0]
             for p in llm.prompts if p.endswith("New questions:")]  # fmt: skip
    said = " ".join(f"p{i}?" for i in range(steps))
    assert asked == [said[: 4 * i].strip() or "nothing" for i in range(steps)]


@pytest.mark.parametrize(
    ("reply", "strict", "published"),
    [
        ('{"status":"True"}', True, True),
        ('json {"status":"False"} ', False, False),
        ("status: TRUE", True, True),
        ("", None, False),
        ("not true", None, True),
        (" True.", True, True),
        ("false", False, False),
        ("untrue", None, True),
        ('{"status": true}', True, True),
        ('{"verdict": "True"}', None, True),
        ('{"status": "True"', True, True),
        ('{"status": ["True"]}', None, None),
        ("{" * 5000 + "}" * 5000, None, False),
        ("The status is true", None, True),
        ("نعم", None, False),
    ],
)
def test_verdicts_are_read_by_one_of_two_rules(reply, strict, published) -> None:
    assert parse_verdict(reply, "strict") is strict
    assert parse_verdict(reply, "published") is published


# -- the reviewer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "accepted"), [([1, 0], True), ([1, 1], False), ([0, 0], False), ([0, 1], False)]
)
def test_both_orders_must_agree(verdicts, accepted) -> None:
    played = play(
        adaptive_note, "q?", says=["n0", "p?", "n1", "x"], chooses=verdicts, steps=1,
        finds={"q?": "aida", "p?\nq?": "verdi"}, both_orders=True,
    )  # fmt: skip
    assert [e.prompt for e in played.asked if isinstance(e, Choice)] == [
        compare_prompt("q?", "n0", "n1", "choice"), compare_prompt("q?", "n1", "n0", "choice"),
    ]  # fmt: skip
    assert played.outcome.memory.startswith("n1" if accepted else "n0")


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ('{"status": "True"}', "accepted: p?"), ("False", "rejected: p?"),
        ("I think so", "malformed: p?"), ("not true", "malformed: p?"),
    ],
)  # fmt: skip
def test_a_verdict_as_text_is_parsed_and_a_bad_one_is_a_rejection(reply, line) -> None:
    played = play(
        adaptive_note, "q?", says=["n0", "p?", "n1", reply, "x"], steps=1, compare="text",
        finds={"q?": "aida", "p?\nq?": "verdi"},
    )  # fmt: skip
    best = "n1" if line.startswith("accepted") else "n0"
    assert played.outcome.memory == f"{best}\n{line}"
    assert played.outcome.stop_reason == ("fixed" if best == "n1" else "fails")


def test_without_a_reviewer_every_note_is_accepted_and_a_call_less_is_made() -> None:
    a = run(Scripted(), fives(0, 5, 10), compare="always", steps=9)
    assert summary(a) == (2 + 2 * 2, 15, "budget_docs") and note_of_run(a) == "n2"


# -- poor replies and poor retrieval ----------------------------------------------------------


def test_nothing_found_is_a_rejection_without_refining_or_comparing() -> None:
    a = run(Scripted(), Found([], [], []), fails=2)
    assert summary(a) == (3, 0, "fails"), "two proposals and an answer without passages"
    assert a.outcome.memory == "\nempty: p0?\nempty: p1?" and a.outcome.hits == []


def test_after_an_empty_first_search_the_first_note_is_made_later() -> None:
    llm = Scripted([True])
    a = run(llm, Found([], range(5)), steps=1)
    assert summary(a) == (4, 5, "fixed") and note_of_run(a) == "n0"
    assert llm.prompts[1].endswith("\nNote:"), "made anew, not refined"


def test_an_empty_note_keeps_the_best() -> None:
    says = {"Better note:": "  ", "Note:": "first"}
    llm = Scripted([True] * 9, lambda prompt: says.get(prompt.rpartition("\n")[2]))
    a = run(llm, fives(0, 5, 10), fails=2)
    assert a.outcome.memory == "first\nempty: p0?\nempty: p1?" and llm.choices == []


def test_without_any_note_the_passages_answer() -> None:
    llm = Scripted([], lambda prompt: "" if prompt.endswith("ote:") else None)
    a = run(llm, fives(0, 5))
    shown = [Passage(f"d{i:02}#0", f"T{i}", f"text {i}") for i in range(10)]
    assert llm.prompts[-1] == rag_prompt(Q.text, shown) and a.outcome.stop_reason == "fails"


def test_an_empty_proposal_searches_with_the_question() -> None:
    found = fives(0)
    a = run(Scripted([True], lambda p: " " if p.endswith("New questions:") else None), found)
    assert found.queries == [Q.text] and a.outcome.stop_reason == "fails"


def test_split_proposals_are_searched_each_and_fused() -> None:
    played = play(
        adaptive_note, "q?", says=["n0", " Who? Where? Who?", "n1", "x"], chooses=[1], steps=1,
        finds={"q?": "lyon", "Who?": "aida rhine", "Where?": "rhine verdi"}, queries="split",
        passages=2,
    )  # fmt: skip
    assert played.queries == ["q?", "Who?", "Where?"]
    # rhine 1/(60+2) + 1/(60+1), aida 1/(60+1), verdi 1/(60+2): two are shown
    assert played.outcome.docids == ["lyon#0", "rhine#0", "aida#0"]
    assert split_questions("no question mark") == ["no question mark"]
    assert split_questions("誰？どこ？") == ["誰？", "どこ？"]


def test_prompts_keep_to_lines_whatever_is_in_them() -> None:
    odd = Passage("d#0", "T\n\nT", "a\n\nQuestion: b")
    prompts = [
        init_prompt("q\n\nNote: x", [odd], "best_last"),
        refine_prompt("q\n\n", [odd], "n\n\n", "best_first"),
        propose_prompt("q\n\n", "n\n\nn", ["a\n\n"]),
        compare_prompt("q\n\n", "a\n\n", "b\n\n", "text"),
    ]
    for prompt in prompts:
        assert prompt.count("\n\n") == 2 and not prompt.endswith((" ", "\n"))


# -- notes of sentences -----------------------------------------------------------------------

AIDA = Sentence("aida#0", "Aida", "Aida is an opera by Giuseppe Verdi.")
VERDI = Sentence("verdi#0", "Giuseppe Verdi", "He was born in Italy.")
FUJI = Sentence("fuji#0", "Fuji", "Fuji is a volcano.")
WHERE = "In which country was the composer of Aida born?"
HONEST = {"writer": "extractive", "compare": "margin"}


def test_content_words_of_any_script() -> None:
    assert content_words("The Composer of AIDA's opera, 1871!") == [
        "composer",
        "aida",
        "opera",
        "1871",
    ]
    assert content_words("東京は") == ["東", "京", "は"] and content_words("מי כתב") == [
        "מי",
        "כתב",
    ]
    assert content_words("") == []


def test_names_are_runs_of_capitalised_words() -> None:
    text = "The University of Oxford, Marie Curie and Mont-Blanc. He met Ann; it rained."
    assert capitalised(text) == ["University of Oxford", "Marie Curie and Mont-Blanc", "Ann"]
    assert capitalised("ireland and") == [] == capitalised("")


def test_the_next_names_are_new_ones_of_the_newest_sentence() -> None:
    assert next_entities((AIDA,), WHERE, []) == ["Giuseppe Verdi"]
    assert next_entities((AIDA, VERDI), WHERE, ["Giuseppe Verdi"]) == ["Italy"]
    assert next_entities((AIDA,), WHERE, ["Giuseppe Verdi"]) == [] == next_entities((), WHERE, [])
    hebrew = Sentence("d", "רומא", "עיר באיטליה.")
    assert next_entities((hebrew,), "מי?", []) == ["רומא"], "no capitals: its title"


def test_coverage_counts_question_words_once_and_asked_names_twice() -> None:
    idf = dict.fromkeys(["country", "composer", "aida", "born", "giuseppe", "verdi"], 1.0)
    asked = ["Giuseppe Verdi"]
    assert coverage((), WHERE, asked, idf) == 0.0
    assert coverage((AIDA,), WHERE, asked, idf) == pytest.approx((1 + 0.5 + 0.5) / 6)  # aida, name
    both = (AIDA, VERDI)  # and now born, and the name in a second sentence
    assert coverage(both, WHERE, asked, idf) == pytest.approx((1 + 1 + 1 + 1) / 6)
    assert coverage((*both, FUJI), WHERE, asked, idf) == coverage(both, WHERE, asked, idf)
    assert coverage((AIDA,), "", [], idf) == 0.0 == coverage((AIDA,), "xyz", [], {})


def test_overlap_is_the_share_of_the_querys_weight() -> None:
    idf = weigh_words([AIDA, VERDI, FUJI])  # df: verdi 2, aida 1, opera 1
    one, two = np.log(1 + 2.5 / 1.5), np.log(1 + 1.5 / 2.5)
    assert overlap("the opera of Verdi", AIDA.whole, idf) == pytest.approx(1.0)
    assert overlap("opera Verdi", VERDI.whole, idf) == pytest.approx(two / (one + two))
    assert overlap("unknown words", AIDA.whole, idf) == 0.0


def test_a_title_stands_before_a_sentence_that_does_not_name_it() -> None:
    assert note_text((AIDA, VERDI)) == f"{AIDA.text} Giuseppe Verdi: {VERDI.text}"
    assert note_of(" a \n b ") == (Sentence("", "", "a b"),) and note_of(" \n") == ()


def test_an_extractive_note_grows_by_the_bridge_and_only_the_reader_is_called() -> None:
    asked = f"Verdi\n{WHERE}"
    played = play(
        adaptive_note, WHERE, says=["Italy"], finds={WHERE: "aida rhine", asked: "verdi fuji"},
        **HONEST, steps=1,
    )  # fmt: skip
    note = "Aida is an opera by Verdi. Verdi was born in Italy."
    assert played.prompts == [rag_prompt(WHERE, [Passage("", "Notes", note)])]
    assert played.queries == [WHERE, asked]
    assert played.outcome.memory == f"{note}\naccepted: Verdi"


def test_the_reviewer_rejects_a_note_that_distractors_made() -> None:
    """They share a word with the question or the name, and add none that is missing."""
    texts = {
        "aida": ("Aida", "Aida is an opera by Verdi."),
        "noise": ("Aida", "Aida was shown in Cairo."),
        "lyon": ("Lyon", "Lyon is a city."),
    }
    library = library_of(texts, count_words)
    finds = {WHERE: ["aida"], f"Verdi\n{WHERE}": ["noise", "lyon"]}

    class Index:
        fingerprint = "i"

        def search(self, queries, k):
            return [[Hit(f"{name}#0", 1.0) for name in finds[q]] for q in queries]

    def end(**values: Any) -> tuple[str, str]:
        params = params_of(adaptive_note, **{**HONEST, **values})
        strategy = partial(adaptive_note.strategy, params=params, library=library)
        (a,) = run_loop(strategy, [Question("q", WHERE)], Tools(FakeLLM(), Index())).answered
        return a.outcome.stop_reason, note_of_run(a)

    assert end() == ("fails", "Aida is an opera by Verdi.")
    reason, note = end(compare="always", steps=1)
    assert reason == "fixed" and "Cairo" in note, "without it the note takes them in"


@pytest.mark.parametrize("found", [["a", "b"], ["b", "a"]])
def test_what_is_asked_next_is_of_the_most_relevant_new_sentence(found) -> None:
    texts = {
        "a": ("Aida", "Aida is an opera by Verdi."),
        "b": ("Aida", "Aida was born of Puccini in this country."),
    }

    class Index:
        fingerprint = "i"

        def search(self, queries, k):
            return [
                [Hit(f"{name}#0", 1.0) for name in found] if q == WHERE else [] for q in queries
            ]

    params = params_of(adaptive_note, **HONEST)
    strategy = partial(
        adaptive_note.strategy, params=params, library=library_of(texts, count_words)
    )
    (a,) = run_loop(strategy, [Question("q", WHERE)], Tools(FakeLLM(), Index())).answered
    assert a.outcome.memory == f"{texts['a'][1]} {texts['b'][1]}\nempty: Puccini"


def test_an_extractive_note_has_no_more_sentences_than_it_may() -> None:
    texts = {f"d{i:02}": (f"T{i}", f"Who wrote It{i}?") for i in range(60)}
    library = library_of(texts, count_words)
    values = {"note_sentences": 6, "most_passages": 60, "compare": "always"}
    params = params_of(adaptive_note, **{**HONEST, **values})
    strategy = partial(adaptive_note.strategy, params=params, library=library)
    (a,) = run_loop(strategy, [Q], Tools(FakeLLM(), fives(0, 5, 10, 15, 20))).answered
    assert a.outcome.memory.split("\n")[0].count("?") == 6 and a.error == ""


@pytest.mark.parametrize(("relevance", "slot"), [("encoder", "encoder"), ("reranker", "reranker")])
def test_relevance_may_come_from_vectors_or_scores(relevance, slot) -> None:
    """A tool that finds only odd passages relevant: the note is made of them."""

    def is_odd(text: str) -> float:
        return float(int(text.split()[-1]) % 2) if text.startswith("T") else 1.0

    class Tool:
        fingerprint, dim = "t", 1

        def encode(self, texts, role):
            return np.array([[is_odd(t)] for t in texts], np.float32)

        def score(self, pairs):
            return np.array([is_odd(text) for _, text in pairs], np.float32)

    params = params_of(adaptive_note, **HONEST, relevance=relevance, scorer="s", steps=0)
    strategy = partial(
        adaptive_note.strategy, params=params, library=library_of(TEXTS, count_words)
    )
    tools = Tools(FakeLLM(), fives(0))._replace(**{slot: Tool()})
    loop = run_loop(strategy, [Q], tools)
    (a,) = loop.answered
    assert note_of_run(a) == "T3: text 3 T1: text 1"
    kinds = loop.effects["kind"].to_pylist()
    assert ("Encode" in kinds, "Score" in kinds) == (slot == "encoder", slot == "reranker")
    with pytest.raises(ValidationError, match="needs a scorer"):
        params_of(adaptive_note, **HONEST, relevance=relevance, scorer="none")


def test_the_effects_hold_every_reply_raw() -> None:
    llm = Scripted([True], lambda p: " {raw\treply} " if p.endswith("New questions:") else None)
    params = params_of(adaptive_note, steps=1)
    library = library_of(TEXTS, count_words)
    strategy = partial(adaptive_note.strategy, params=params, library=library)
    loop = run_loop(strategy, [Q], Tools(llm, fives(0, 5)))
    rows = loop.effects.select(["kind", "result"]).to_pylist()
    replies = [json.loads(r["result"])["text"] for r in rows if r["kind"] == "LLM"]
    assert " {raw\treply} " in replies


# -- lock-step, and questions of every kind ---------------------------------------------------

VARIANTS = {
    "note": {},
    "deepnote": {"stop": "deepnote", "steps": 5},
    "text, both orders, split": {"compare": "text", "both_orders": True, "queries": "split"},
    "written, by margin": {"compare": "margin", "margin": 0.0, "stop": "never"},
    "extractive": {**HONEST, "margin": 0.0, "queries": "split", "fails": 3},
    "extractive, never": {**HONEST, "stop": "never", "steps": 9},
}
variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
WORDS = (
    "aida",
    "verdi",
    "Rome",
    "Italy",
    "born",
    "composer",
    "opera",
    "river",
    "city",
    "東京",
    "מי",
)
MANY = {
    f"d{i:02}": (f"Title{i % 7}", " ".join(WORDS[(i * k) % len(WORDS)] for k in (1, 2, 3, 5)) + ".")
    for i in range(40)
}


def chatter(prompt: str) -> str:
    """Whatever a model may say: verdicts good and bad, questions, notes, nothing."""
    said = (
        '{"status": "True"}',
        "false",
        "",
        "Who is Verdi? Where is Rome?",
        "Verdi was born in Rome.",
    )
    return said[int(uniform(prompt) * len(said))]


def chat(questions: Sequence[Question], values: dict[str, Any], **how: Any) -> Loop:
    params = params_of(adaptive_note, **values)
    strategy = partial(adaptive_note.strategy, params=params, library=library_of(MANY, count_words))
    tools = how.pop("tools", None) or Tools(FakeLLM(chatter), Words(MANY))
    return run_loop(strategy, questions, tools, **how)


class Words(FakeSearch):
    """Passages that share words with the query, most first; none that share none."""

    def __init__(self, texts) -> None:
        super().__init__(len(texts))
        self.words = {name: set(content_words(" ".join(text))) for name, text in texts.items()}

    def search(self, queries, k):
        def best(query):
            wanted = set(content_words(query))
            shared = sorted((-len(wanted & words), name) for name, words in self.words.items())
            return [Hit(f"{name}#0", float(-n)) for n, name in shared[:k] if n]

        return [best(q) for q in queries]


def asked_of(n: int) -> list[Question]:
    return [
        Question(
            f"q{i:02}", f"{WORDS[i % 11]} {WORDS[i * 3 % 11]}?", ("no", "yes") if i % 4 == 0 else ()
        )
        for i in range(n)
    ] + [Question("empty", ""), Question("nothing", "xyzzy"), Question("he", "איפה נולד ורדי?")]


@variants
@pytest.mark.parametrize("max_active", [1, 4, 16])
def test_lock_step_is_one_by_one(values, max_active) -> None:
    alone = chat(asked_of(24), values, max_active=1, batch=1)
    loop = chat(asked_of(24)[::-1], values, max_active=max_active)
    assert table_bytes(loop) == table_bytes(alone)
    assert not any(a.error for a in loop.answered)
    stops = {a.outcome.stop_reason for a in loop.answered}
    assert stops <= {"fails", "fixed", "budget_docs", "no_query"}
    assert len({(a.outcome.stop_reason, a.outcome.memory) for a in loop.answered}) > 8


@variants
def test_a_long_question_fails_alone_and_one_passage_is_a_corpus(values) -> None:
    long = Question("long", "aida " * 1200)
    both = {a.qid: a for a in chat([*asked_of(5), long], values).answered}
    assert "the model's context has 1000" in both.pop("long").error
    assert list(both.values()) == chat(asked_of(5), values).answered
    one = {"d00": MANY["d00"]}
    loop = chat(asked_of(12), values, tools=Tools(FakeLLM(chatter), Words(one)))
    assert all(len(a.outcome.docids) <= 1 and a.error == "" for a in loop.answered)


@variants
def test_a_model_that_never_stops_is_stopped(values) -> None:
    class Endless(FakeLLM):
        def _text(self, r):
            return Generation("word " * r.max_tokens, len(r.prompt.split()), r.max_tokens, "length")

    loop = chat(asked_of(6), values, tools=Tools(Endless(), Words(MANY)))
    for a in loop.answered:
        assert a.error == "" and a.outcome.stop_reason and a.counts.llm_calls <= 2 + 4 * 9
