"""FREESON: the loop of thoughts and sub-queries, and the walk with a real model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_worlds import MOUNTAINS, passages_of
from language_models import smollm2, tiny_lm
from loop_fakes import FakeLLM
from strategy_worlds import params_of, passage, play
from walk_worlds import TableModel, drawn, index_of, random_docs

from stages.asking import Budget
from stages.effects import BudgetSpent, Outcome, Question, Steps
from stages.effects import Search as Asked
from stages.errors import QuarryError
from stages.index import Inputs, layout, open_index, suffixes
from stages.lm import open_generator
from stages.loop import Loop, run_loop
from stages.records import RecordStore
from stages.serve.strategies import freeson
from stages.serve.strategies.freeson_prompts import Found, read_thought, thought_prompt
from stages.serve.traverse.retriever import CorpusWalker, walking
from stages.serve.traverse.search import Likelihood, Search
from stages.serve.traverse.walk import Walk
from stages.tools import Tools
from stages.types import Hit

ROOT = Path(__file__).resolve().parents[2]
ASK = "In which country was the composer of Aida born?"
FINDS = {ASK: "aida", "Where was Verdi born?": "verdi rhine", "Who?": "etna"}


def test_it_thinks_searches_and_ends_with_an_answer() -> None:
    says = [
        " I need where Verdi was born. Search: Where was Verdi born?",
        " Verdi was born in Italy. Answer: Italy", " Italy",
    ]  # fmt: skip
    played = play(freeson, ASK, says=says, finds=FINDS)
    assert played.queries == [ASK, "Where was Verdi born?"]
    assert played.outcome.stop_reason == "answer_marker" and played.outcome.answer == "Italy"
    assert played.outcome.docids == ["verdi#0", "rhine#0", "aida#0"], "latest round first"
    first, second, reader = played.prompts
    assert first.endswith(
        f"Question: {ASK}\nThought: Search: {ASK}\n"
        "Found: Aida. Aida is an opera by Verdi.\nThought:"
    )
    assert second.endswith(
        "Thought: I need where Verdi was born. Search: Where was Verdi born?\n"
        "Found: Verdi. Verdi was born in Italy.\nThought:"
    ), "one passage of a search is inserted"
    assert "The Rhine is a river." in reader and "Thought:" not in reader
    assert played.outcome.memory.count("\n") == 4
    assert {hit.docid for hit in played.outcome.hits} == {"aida", "verdi", "rhine"}


@pytest.mark.parametrize(
    ("text", "thought", "query", "answer"),
    [
        (" I need x. Search: What is x?", "I need x.", "What is x?", None),
        (" Search: a? Search: b?", "", "a?", None),
        ("It is so. answer: the Rhine ", "It is so.", "", "the Rhine"),
        ("Answer: a Search: b", "", "", "a Search: b"),
        ("I know Dr. Who. He was born in Lyon.", "I know Dr. Who.", "He was born in Lyon.", None),
        ("First this. Then that. Search:", "First this.", "Then that.", None),
        ("Search:", "", "", None),
        ("  ", "", "", None),
        ("東京は首都。人口は？", "東京は首都。", "人口は？", None),
    ],
)
def test_a_thought_is_read_strictly(
    text: str, thought: str, query: str, answer: str | None
) -> None:
    """Malformed: the last sentence is the sub-query; nothing at all: none."""
    read = read_thought(text)
    assert (read.thought.strip(), read.query, read.answer) == (thought, query, answer)


def test_how_it_ends_without_an_answer() -> None:
    ends = [
        ("no_query", ["  ", " x"]),
        ("converged", ["Search: Who?", f"Search: {ASK}", " x"]),
        ("converged", ["Search: Who?", "Search:  who", " x"]),  # compared as names are
        ("fixed", ["Search: Who?", "Search: Where was Verdi born?", "no marker here", " x"]),
    ]
    for reason, says in ends:
        played = play(freeson, ASK, says=says, finds=FINDS)
        assert (played.outcome.stop_reason, played.outcome.answer) == (reason, "x"), reason
    assert played.queries == [ASK, "Who?", "Where was Verdi born?", "no marker here"], "max_search"


def test_with_one_search_it_is_one_shot_rag_and_with_none_the_reader_alone() -> None:
    played = play(freeson, ASK, says=[" x"], finds=FINDS, max_search=1)
    assert played.story == [("search", ASK), ("llm", None)]
    assert played.outcome.docids == ["aida#0"]
    played = play(freeson, ASK, says=[" x"], finds=FINDS, max_search=0)
    assert played.story == [("llm", None)] and played.outcome.hits == []


def test_without_a_first_search_it_may_answer_at_once() -> None:
    played = play(freeson, ASK, says=["Answer: Italy", " Italy"], search_first=False)
    assert played.queries == [] and played.outcome.stop_reason == "answer_marker"
    played = play(freeson, ASK, says=["Search: Who?", "", " x"], search_first=False, finds=FINDS)
    assert played.queries == ["Who?"]


def test_the_question_may_stand_before_the_sub_query() -> None:
    played = play(freeson, ASK, says=["Search: Who?", "", " x"], context="question", finds=FINDS)
    assert played.queries == [ASK, f"{ASK} Who?"]


def test_a_prompt_that_is_too_long_loses_its_oldest_findings() -> None:
    steps = [Found("a b.", "c?", [passage("aida")]), Found("d.", "e?", [passage("verdi")])]
    library = SimpleNamespace(count_tokens=lambda texts: [len(t.split()) for t in texts])
    n = library.count_tokens([thought_prompt(ASK, steps)])[0]
    whole = freeson.fit_trace(ASK, steps, params_of(freeson, prompt_tokens=n), library)
    assert whole == thought_prompt(ASK, steps)
    cut = freeson.fit_trace(ASK, steps, params_of(freeson, prompt_tokens=n - 1), library)
    assert "opera by Verdi.\nThought" not in cut and "Verdi was born in Italy.\nThought" in cut
    least = freeson.fit_trace(ASK, steps, params_of(freeson, prompt_tokens=1), library)
    assert ASK in least and "c?" in least


# -- the walk as a retriever ----------------------------------------------------------------------


def walker(logps=drawn, records=None, **values) -> CorpusWalker:
    walk = Walk(**{"simulations": 6, "granularity": 2, "depth": 3, "verify_tokens": 8, **values})
    model = TableModel(logps)
    search = Search(index_of(random_docs(30, 2)), model, Likelihood(), walk, seed=13)
    counting = SimpleNamespace(count_tokens=lambda texts: [len(t.split()) for t in texts])
    return CorpusWalker(search, counting, "print", records)


def test_a_query_walks_once_and_deeper_searches_begin_alike() -> None:
    retriever = walker()
    few = retriever.search(["a", "b", "a"], 2)
    steps = retriever.engine.counts["steps"]
    many = retriever.search(["b", "a"], 100)
    assert (
        retriever.engine.counts["steps"] == steps > 0 and retriever.engine.counts["searches"] == 2
    )
    assert list(few[0]) == list(few[2]) == list(many[1][:2]) and list(few[1]) == list(many[0][:2])
    assert [h.score for h in many[0]] == [1 / (i + 1) for i in range(len(many[0]))]
    assert all(isinstance(h, Hit) and h.docid.endswith("#0") for h in many[0])
    assert retriever.search([], 3) == [] and retriever.search([""], 3)[0]


def test_hits_come_with_what_the_walk_cost() -> None:
    retriever = walker()
    (one,), (again, other) = retriever.search(["a"], 2), retriever.search(["a", "b c"], 9)
    assert one.cost == again.cost and again.cost.rollouts == 6 and not again.cost.cut
    assert again.cost.tokens + other.cost.tokens == retriever.engine.reader.tokens
    (cut,) = walker(max_tokens=one.cost.tokens - 1).search(["a"], 9)
    assert cut.cost.cut and cut.cost.tokens < one.cost.tokens and cut.cost.rollouts < 6


QUERIES = [f"what is {i}" for i in range(5)]


def die_at_the_fourth(store: str) -> None:
    """Walks of the five queries, two at a time; kill -9 at the first look at the fourth."""

    def logps(prompt: str, tokens: tuple[int, ...]) -> np.ndarray:
        if QUERIES[3] in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn(prompt, tokens)

    walker(logps, lambda: RecordStore(Path(store)), trees=2).search(QUERIES, 5)


def test_a_killed_search_walks_again_only_for_what_had_not_finished(tmp_path) -> None:
    asked: list[str] = []

    def told(prompt: str, tokens: tuple[int, ...]) -> np.ndarray:
        asked.append(prompt)
        return drawn(prompt, tokens)

    code = "import sys, test_freeson; test_freeson.die_at_the_fourth(sys.argv[1])"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/unit")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == -signal.SIGKILL
    resumed = walker(told, lambda: RecordStore(tmp_path), trees=2).search(QUERIES, 5)
    walked = {q for q in QUERIES if any(q in prompt for prompt in asked)}
    assert walked and walked < {*QUERIES} and QUERIES[0] not in walked and QUERIES[4] in walked
    fresh = walker(trees=2).search(QUERIES, 5)
    assert resumed == fresh and [h.cost for h in resumed] == [h.cost for h in fresh]
    asked.clear()
    whole = walker(told, lambda: RecordStore(tmp_path)).search(QUERIES, 5)
    assert whole == fresh and asked == [], "all of it is kept now"


# -- what a walk costs its question ---------------------------------------------------------------


def asking(question: Question) -> Steps:
    """Three rounds of a walk each, and what they found."""
    found: list[str] = []
    try:
        for i in range(3):
            query = f"{question.text} {i}"
            hits, _ = yield [Asked(query, 3), Asked(query, 9, unit="document")]
            found += [h.docid for h in hits]
    except BudgetSpent:
        pass
    return Outcome(docids=found)


def ask_all(retriever: Any, *, most: int | None = None, **how: Any) -> Loop:
    tools = Tools(FakeLLM(), retriever, search_tokens=retriever.engine.walk.max_tokens)
    questions = [Question(f"q{i}", f"w{i}") for i in range(4)]
    return run_loop(asking, questions, tools, budget=Budget(max_tokens=most), **how)


def test_a_question_pays_for_each_of_its_walks_once() -> None:
    retriever = walker()
    loop = ask_all(retriever)
    used = [a.counts.tokens_in for a in loop.answered]
    assert sum(used) == retriever.engine.reader.tokens and min(used) > 0
    rows = loop.effects.select(["qid", "request", "tokens_in", "result"]).to_pylist()
    for row in rows:
        if json.loads(row["request"])["unit"] == "document":
            assert row["tokens_in"] == 0
        else:
            told = json.loads(row["result"])
            assert told["tokens"] == row["tokens_in"] and told["rollouts"] == 6
    again = ask_all(SimpleNamespace(fingerprint="print", engine=retriever.engine),
                    replay=loop.effects)  # fmt: skip
    assert again.answered == loop.answered and again.effects.equals(loop.effects)


def test_a_walk_that_was_cut_is_the_questions_stop_reason() -> None:
    whole, cut = ask_all(walker()), ask_all(walker(max_tokens=70))
    assert {a.outcome.stop_reason for a in whole.answered} == {"fixed"}
    assert {a.outcome.stop_reason for a in cut.answered} == {"budget_walk"}
    assert all(a.counts.rounds == 3 and a.outcome.docids for a in cut.answered), "it goes on"


@pytest.mark.parametrize("most", [0, 69, 70, 139, 100_000])
def test_a_limit_of_tokens_holds_for_walks(most: int) -> None:
    """A walk begins only where the most that it may take (70) fits."""
    for a in ask_all(walker(max_tokens=70), most=most).answered:
        assert a.counts.tokens_in <= most and (a.counts.rounds > 0) == (most >= 70)
        spent = a.counts.rounds < 3
        assert a.counts.tokens_in + 70 > most or not spent
        assert a.outcome.stop_reason == ("budget_tokens" if not a.counts.rounds else "budget_walk")
        assert spent or most > 139


def test_limits_under_which_no_walk_would_begin_are_refused(small) -> None:
    tools = Tools(open_generator(small.folder / "tiny"), open_index(small.index))
    with pytest.raises(QuarryError, match="a prompt and one expansion may take"):
        walking(tools, Walk(max_tokens=50), None, seed=1)
    with pytest.raises(ValueError, match="no walk would begin: budget.max_tokens is 3000"):
        params_of(freeson, budget={"max_tokens": 3000})
    enough = params_of(freeson, budget={"max_tokens": 3000}, walk={"max_tokens": 1400})
    assert enough.walk.max_tokens == 1400


def test_several_texts_are_no_query_and_a_long_one_is_cut() -> None:
    retriever = walker(query_tokens=3)
    with pytest.raises(QuarryError, match="one text at a time, not"):
        retriever.search([("a", "b")], 1)
    asked = []
    retriever.engine.reader.logps = lambda prompt, tokens: asked.append(prompt) or drawn("", tokens)
    retriever.search(["one two three four five"], 1)
    assert "Question: one two three\nPassage:" in asked[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("walk")
    return SimpleNamespace(folder=folder, index=indexed(tiny_lm(folder / "tiny"), folder / "index"))


def indexed(model: Path, path: Path, texts=MOUNTAINS) -> Path:
    slots = dict(kind="suffixes", corpus="c", model="m", centroids="none", triples="none")
    made = suffixes.build(passages_of(texts), suffixes.Params(**slots), Inputs(None, model))
    path.mkdir()
    layout.write_index(path, "suffixes", made)
    return path


def test_what_does_not_belong_together_is_refused(small, tmp_path) -> None:
    generator = open_generator(small.folder / "tiny")
    index, walk = open_index(small.index), Walk()
    with pytest.raises(QuarryError, match="the entry's index is of another kind"):
        walking(Tools(generator, SimpleNamespace()), walk, None, seed=1)
    with pytest.raises(QuarryError, match="an openai server does not give"):
        walking(Tools(SimpleNamespace(), index), walk, None, seed=1)
    index.tokenizer = "another"
    with pytest.raises(QuarryError, match="tokens of another generator than the entry's model"):
        walking(Tools(generator, index), walk, None, seed=1)
    head = tmp_path / "head"
    head.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (head / name).write_bytes((small.folder / "tiny" / name).read_bytes())
    made = {"role": "value", "fingerprint": "x", "made_by": {"base": "another"}}
    (head / "training.json").write_text(json.dumps(made))
    from safetensors.numpy import save_file

    weights = {"w1": (2, 32), "w2": (2,), "mean": (32,), "deviation": (32,)}
    save_file({k: np.ones(v, np.float32) for k, v in weights.items()}, head / "model.safetensors")
    with pytest.raises(QuarryError, match="reads the hidden states of another generator"):
        walking(Tools(generator, open_index(small.index)), walk, head, seed=1)


def test_its_fingerprint_is_of_all_that_decides_what_is_found(small) -> None:
    tools = Tools(open_generator(small.folder / "tiny"), open_index(small.index))

    def made(seed: int = 1, **values) -> str:
        return walking(tools, Walk(**values), None, seed=seed).retriever.fingerprint

    assert made() == made(trees=3) != made(simulations=3) and made() != made(seed=2)


def test_the_real_model_walks_inside_the_corpus_alone_as_in_company(tmp_path) -> None:
    """Check 3 and lock-step with SmolLM2: every path is a piece of its passages."""
    index = indexed(smollm2(), tmp_path / "index")
    tools = Tools(open_generator(smollm2()), open_index(index, smollm2()))
    walk = Walk(simulations=4, granularity=3, depth=4, verify_tokens=12)
    queries = ["Which volcano is in Japan?", "When was the Matterhorn first climbed?"]
    equipped = walking(tools, walk, None, seed=13).retriever
    together = equipped.search(queries, 10)
    decode = equipped.engine.reader.decode
    for tree in equipped.engine.run(queries):
        assert tree.nodes()
        for node in tree.nodes():
            (first, *_) = docs = equipped.engine.index.docs(node.left, node.right, 99)
            assert decode(node.tokens).startswith(" ")
            for doc in docs:
                assert decode(node.tokens) in decode(equipped.engine.index.text(doc)), first
    alone = [walking(tools, walk, None, seed=13).retriever.search([q], 10)[0] for q in queries]
    assert [list(h) for h in alone] == [list(h) for h in together]
    assert together[0][0].docid == "fuji#0" and together[1][0].docid.startswith("matterhorn")
