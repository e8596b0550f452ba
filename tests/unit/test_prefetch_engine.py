"""The engine as a strategy and a service see it: a retriever that is told what may come."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from index_worlds import MOUNTAINS, built, encoder_dir, encoder_with, passages_of

from stages.clusters import nearest_clusters
from stages.effects import LLM, Hint, Outcome, Question, Search
from stages.errors import QuarryError, Refused
from stages.index import open_index
from stages.loop import run_loop
from stages.serve.prefetch.budget import fit
from stages.serve.prefetch.engine import FIT_AFTER, open_engine
from stages.tools import Tools
from stages.types import Generation, Request, TokenEvent

PATIENCE = 20
SUBJECTS = ["volcano", "river", "glacier", "island", "desert", "harbour", "forest", "bridge"]
PLACES = ["Sicily", "Japan", "the Alps", "Peru", "Norway", "Kenya"]
LAND = {
    f"{s}-{p}#0": (s.title(), f"A {s} in {p} that travellers describe.")
    for s in SUBJECTS
    for p in PLACES
} | MOUNTAINS
QUERIES = ["a volcano in Sicily", "rivers of Norway", "bridge", "", "an island near Japan"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("records")


def build(folder: Path, texts: dict, store: Path, *, nlist: int = 8, **values) -> Path:
    folder.mkdir(exist_ok=True)
    cut = built(folder, "centroids", passages_of(texts), store=store, nlist=nlist)
    given = {"centroids": cut.path, "nprobe": 3, **values}
    return built(folder, "clustered", passages_of(texts), store=store, **given).path


@pytest.fixture(scope="module")
def land(tmp_path_factory, store) -> Path:
    return build(tmp_path_factory.mktemp("land"), LAND, store, codes=["fp16", "int8"])


@pytest.fixture
def open_it(land):
    """Engines over the land, closed at the end."""
    opened = []

    def engine(index: Path = land, **settings):
        given = {"hot_bytes": 2**24, "budget": 2**24, **settings}
        opened.append(open_engine(index, encoder_dir("dense"), **given))
        return opened[-1]

    yield engine
    for one in opened:
        one.close()


def probe(engine, query: str) -> np.ndarray:
    """The nearest cluster."""
    version = engine._version
    return nearest_clusters(version.encode([query]), version.cold.file.centroids, 1)[0, 0]


def settle(engine) -> None:
    """Wait for the copies of the open window, and for evictions."""
    if engine._shared.window is not None:
        assert engine._shared.window.handle.wait(PATIENCE)
    assert engine._version.prefetcher.trim(1.0).wait(PATIENCE)


# -- what it finds --------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 10_000])
def test_it_finds_what_the_index_finds_with_any_hint_or_none(open_it, land, k: int) -> None:
    engine = open_it()
    expected = open_index(land, encoder_dir("dense")).search(QUERIES, k)
    cold = engine.search(QUERIES, k)
    for ours, theirs in zip(cold, expected, strict=True):
        assert [h.docid for h in ours] == [h.docid for h in theirs]
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-6)
    for hint in ("volcano", "rivers of Norway", ""):
        engine.prefetch(hint)
        settle(engine)
        assert engine.search(QUERIES, k) == cold, "not a bit depends on what is resident"
        engine.end_request()
    assert [engine.search([q], k)[0] for q in QUERIES] == cold, "nor on the queries beside"


def test_short_codes_find_the_same_passages(open_it) -> None:
    cold = open_it().search(QUERIES, 5)
    for codec in ("fp16", "int8"):
        for ours, theirs in zip(open_it(codec=codec).search(QUERIES, 5), cold, strict=True):
            assert [h.docid for h in ours] == [h.docid for h in theirs]
            np.testing.assert_allclose(
                [h.score for h in ours], [h.score for h in theirs], atol=1e-6
            )


def test_no_query_no_hits_and_an_empty_corpus(open_it, tmp_path, store) -> None:
    assert open_it().search([], 5) == []
    hollow = open_it(build(tmp_path / "hollow", {}, store))
    hollow.prefetch("volcano")
    settle(hollow)
    assert hollow.search(["volcano"], 5) == [[]]


def test_a_query_of_several_texts_is_searched_by_its_mean(open_it, land) -> None:
    query = ("a volcano", "in Sicily")
    expected = open_index(land, encoder_dir("dense")).search([query], 5)
    assert [h.docid for h in open_it().search([query], 5)[0]] == [h.docid for h in expected[0]]


# -- check 6: the query is known -----------------------------------------------------------


def test_a_right_guess_with_a_large_enough_budget_has_no_miss(open_it) -> None:
    engine = open_it()
    engine.prefetch("a volcano in Sicily")
    settle(engine)
    engine.search(["a volcano in Sicily"], 5)
    stats = engine.stats()
    assert (stats["hits"], stats["misses"], stats["hit_rate"]) == (3, 0, 1.0)
    assert stats["missed_bytes"] == 0 < stats["copied_bytes"]


@pytest.mark.parametrize("settings", [{"budget": 0}, {"hot_bytes": 0}, {"strategy": "none"}])
def test_without_budget_room_or_lookahead_every_cluster_is_a_miss(open_it, settings) -> None:
    engine = open_it(**settings)
    engine.prefetch("a volcano in Sicily")
    settle(engine)
    assert [h.docid for h in engine.search(["a volcano in Sicily"], 1)[0]] == ["volcano-Sicily#0"]
    stats = engine.stats()
    assert (stats["hits"], stats["misses"], stats["copied_bytes"]) == (0, 3, 0)


def test_a_budget_above_memory_copies_what_there_is_room_for(open_it) -> None:
    engine = open_it(hot_bytes=2 * 64 * (384 * 4 + 8), budget=10**15)
    engine.prefetch("a volcano in Sicily")
    settle(engine)
    assert engine.stats()["resident_pages"] == 2 == engine.stats()["pages"]


# -- strategies (3.8) -----------------------------------------------------------------------


def rounds(engine, *hints: str) -> list[int]:
    """Clusters copied in each round of one request."""
    engine.begin()
    copied, before = [], engine.stats()["copied_clusters"]
    for hint in hints:
        engine.prefetch(hint)
        settle(engine)
        engine.search([hint], 3)
        now = engine.stats()["copied_clusters"]
        copied.append(now - before)
        before = now
    return copied


SOME = 25 * 384 * 4  # bytes: about half of the 54 vectors


def test_gradual_keeps_earlier_rounds_and_adds(open_it) -> None:
    engine = open_it(budget=SOME)
    first, second = rounds(engine, "volcano", "volcano")
    assert first > 0 and second > 0, "what ranks behind"
    assert engine.stats()["resident"] == first + second and engine.stats()["evicted"] == 0


def test_all_evicts_to_the_cache_fraction_before_each_round(open_it) -> None:
    engine = open_it(budget=SOME, strategy="all", cache_fraction=0.0)
    first, second = rounds(engine, "volcano", "bridge")
    assert engine.stats()["evicted"] == first and engine.stats()["resident"] == second


def test_once_looks_ahead_in_the_first_round_of_a_request(open_it) -> None:
    engine = open_it(budget=SOME, strategy="once", cache_fraction=0.0)
    first, second, third = rounds(engine, "volcano", "bridge", "river")
    assert first > 0 and second == third == 0
    engine.end_request()
    assert rounds(engine, "bridge", "volcano")[0] > 0, "another request"


def test_runtime_copies_when_the_query_is_known_and_waits_for_it(open_it) -> None:
    engine = open_it(strategy="runtime")
    engine.prefetch("volcano")
    assert engine.stats()["windows"] == 0
    engine.search(["volcano"], 3)
    stats = engine.stats()
    assert (stats["hits"], stats["misses"]) == (3, 0) and stats["copied_clusters"] > 0


def test_between_requests_the_cache_fraction_stays(open_it) -> None:
    engine = open_it(cache_fraction=0.5)
    rounds(engine, "volcano")
    everything = engine.stats()["resident_pages"]
    engine.end_request()
    settle(engine)
    assert 0 < engine.stats()["resident_pages"] <= engine.stats()["pages"] / 2 < everything


def test_a_request_that_never_searches_leaves_nothing_open(open_it) -> None:
    engine = open_it(cache_fraction=0.0)
    engine.begin()
    engine.prefetch("volcano")
    engine.end_request()
    settle(engine)
    assert engine._shared.window is None and engine.stats()["resident_pages"] == 0
    assert engine.search(["volcano"], 1)[0]


# -- requests side by side ------------------------------------------------------------------


class Gate:
    """The cold tier of the copying thread: a copy begins, and goes on when it is let."""

    def __init__(self, engine) -> None:
        prefetcher = engine._version.prefetcher
        self._cold, prefetcher._cold = prefetcher._cold, self
        self.file, self.began, self._go = self._cold.file, threading.Event(), threading.Event()

    def read(self, clusters):
        self.began.set()
        assert self._go.wait(PATIENCE)
        return self._cold.read(clusters)

    def open(self) -> None:
        self._go.set()


def test_a_search_closes_the_window_of_its_own_request_alone(open_it) -> None:
    engine = open_it(group_bytes=1)  # every cluster is a group
    gate = Gate(engine)
    a, b = engine.begin(), engine.begin()
    engine.prefetch("volcano", a)
    assert gate.began.wait(PATIENCE)
    engine.prefetch("bridge", b)
    of_a, of_b = (engine._open[t].window.handle for t in (a, b))
    engine.search(["a river"], 1)  # of someone who never began
    assert not of_a.cancelled and not of_b.cancelled
    engine.search(["volcano"], 1, a)
    assert of_a.cancelled and not of_b.cancelled
    engine.end_request()  # nor does this: both gave their tokens
    assert set(engine._open) == {a, b} and not of_b.cancelled
    gate.open()
    assert of_a.wait(PATIENCE) and of_b.wait(PATIENCE)
    assert len(of_a.clusters) == 1, "the group that had begun"
    assert len(of_b.clusters) > 1
    engine.end_request(b)
    engine.prefetch("volcano", b)
    assert list(engine._open) == [a] and engine.stats()["windows"] == 2, "it is over"


@pytest.mark.parametrize("tokens", [True, False])
def test_windows_of_many_rounds_do_not_pile_up(open_it, tokens: bool) -> None:
    engine = open_it(group_bytes=1)
    gate = Gate(engine)
    requests = [engine.begin(), engine.begin()]
    engine.prefetch("volcano")
    assert gate.began.wait(PATIENCE)  # the thread is busy from here
    for _ in range(50):
        for token in requests:
            own = (token,) if tokens else ()
            engine.prefetch("bridge", *own)
            engine.prefetch("harbour", *own)
            engine.search(["bridge"], 1, *own)
    assert engine._version.prefetcher.waiting() <= 2
    gate.open()
    engine.prefetch("glacier", *own)
    handle = (engine._open[token] if tokens else engine._shared).window.handle
    assert handle.wait(PATIENCE) and handle.ranked is not None, "it was planned"


def test_rounds_of_requests_with_tokens_are_counted_for_each(open_it) -> None:
    engine = open_it(strategy="once")
    a, b = engine.begin(), engine.begin()
    for token in (a, b, a, b):
        engine.prefetch("volcano", token)
        engine.search(["volcano"], 1, token)
    assert engine.stats()["windows"] == 2


# -- hints of the loop ----------------------------------------------------------------------


class Writes:
    """A generator whose calls take until the engine has copied what it planned."""

    fingerprint, context = "writes", None

    def __init__(self, engine) -> None:
        self.engine = engine

    def count_tokens(self, texts):
        return [len(t.split()) for t in texts]

    def stream(self, inbox):
        while not inbox.closed():
            for request_id, request in inbox.admit(64):
                settle(self.engine)
                text = f"{request.prompt} that travellers describe"
                yield TokenEvent(request_id, text, Generation(text, 1, 1, "stop"))


def test_a_strategy_s_hint_is_copied_while_the_model_writes(open_it) -> None:
    def strategy(question):
        yield Hint(question.text)
        passage = yield LLM(Request(question.text, max_tokens=8))
        hits = yield Search(passage.text, 3)
        return Outcome(hits[0].docid)

    engine = open_it()
    questions = [Question("1", "A volcano in Sicily"), Question("2", "A river in Norway")]
    tools = Tools(Writes(engine), engine, prefetch=engine.prefetch)
    loop = run_loop(strategy, questions, tools)
    assert [a.outcome.answer for a in loop.answered] == ["volcano-Sicily#0", "river-Norway#0"]
    stats = engine.stats()
    assert stats["windows"] == 1, "two hints, one window"
    assert (stats["hits"], stats["misses"]) == (6, 0)
    kinds = [e["kind"] for e in engine.timeline()]
    assert kinds[0] == "copy" and kinds[-1] == "search"


def test_a_hint_returns_at_once_and_raises_nothing(open_it) -> None:
    engine = open_it()
    entered, leave = threading.Event(), threading.Event()

    def encode(queries):
        entered.set()
        assert leave.wait(PATIENCE)
        raise RuntimeError("no memory")

    version = engine._version
    real, version.encode = version.encode, encode
    engine.prefetch("volcano")  # on this thread: would hang here
    assert entered.wait(PATIENCE)
    engine.prefetch("bridge")
    leave.set()
    assert engine._shared.window.handle.wait(PATIENCE)
    version.encode = real
    assert engine.search(["volcano"], 1)[0] and engine.stats()["copy_errors"] >= 1
    engine.close()
    engine.prefetch("volcano")
    with pytest.raises(QuarryError, match="was closed"):
        engine.search(["volcano"], 1)


def test_what_it_observed_fits_the_latency_model(open_it) -> None:
    engine = open_it(budget=SOME, throttle=(2e7, 0.0))
    engine.search(["bridge"], 3)  # no window: no trace
    for query in ("volcano", "a river in Norway", "glacier"):
        engine.begin()
        engine.prefetch(query)
        settle(engine)
        engine.search([query, "an island near Japan"], 3)
        engine.end_request()
    traces = engine.traces()
    assert len(traces) == 3 and all(len(t.needed) == 2 * 3 for t in traces)
    first = traces[0]
    assert np.isfinite(first.needed).all() and first.copied_bytes <= SOME
    resident = first.needed <= first.copied_bytes
    assert first.misses == 6 - resident.sum(), "from an empty tier the model is exact"
    model = fit(traces)
    assert 0 < model.bandwidth <= 2e7 and model.n == 6 and model.miss(0) == 1
    assert model.best_budget(room=SOME) <= SOME


# -- versions -------------------------------------------------------------------------------


def test_a_swap_serves_the_new_index_and_forgets_the_old_residents(
    open_it, tmp_path, store
) -> None:
    engine = open_it()
    engine.prefetch("etna")
    settle(engine)
    before = engine.fingerprint
    lava = {**LAND, "lava#0": ("Lava", "Etna is a volcano in Sicily with lava.")}
    engine.swap(build(tmp_path / "new", lava, store))
    assert engine.fingerprint != before and engine.stats()["resident_pages"] == 0
    assert engine.search(["Etna volcano Sicily lava"], 1)[0][0].docid == "lava#0"


def test_a_search_in_flight_finishes_on_the_old_index(open_it, tmp_path, store) -> None:
    engine = open_it()
    old = engine._version
    expected = engine.search(["volcano"], 3)
    inside, go = threading.Event(), threading.Event()
    real = old.search

    def slow(vectors, k):
        inside.set()
        assert go.wait(PATIENCE)
        return real(vectors, k)

    old.search = slow
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.search(["volcano"], 3)))
    thread.start()
    assert inside.wait(PATIENCE)
    engine.swap(build(tmp_path / "new", MOUNTAINS, store, nlist=3))
    assert len(engine.search(["volcano"], 100)[0]) <= len(MOUNTAINS), "the new one, meanwhile"
    go.set()
    thread.join(PATIENCE)
    assert found == expected
    (error,) = old.cold.read([0]).errors.values()
    assert "was closed" in str(error), "by the last search that ran on it"


def test_an_index_that_cannot_be_opened_leaves_the_old_one(open_it, tmp_path, store) -> None:
    engine = open_it()
    before = engine.search(["volcano"], 3)
    with pytest.raises(QuarryError, match="not an index"):
        engine.swap(tmp_path)
    flat = built(tmp_path, "flat", passages_of(MOUNTAINS), store=store)
    with pytest.raises(QuarryError, match="'flat' cannot be read cluster by cluster.*clustered"):
        engine.swap(flat.path)
    assert engine.search(["volcano"], 3) == before


def test_another_encoder_and_settings_without_sense_are_refused(land, tmp_path) -> None:
    other = encoder_with(
        "dense", tmp_path / "other", {"1_Pooling/config.json": {"pooling_mode": "cls"}}
    )
    with pytest.raises(QuarryError, match="other fingerprint"):
        open_engine(land, other, hot_bytes=0, budget=0)
    for settings, message in (
        ({"strategy": "sometimes"}, "strategy 'sometimes' is not known. There are: gradual, all"),
        ({"cache_fraction": 1.5}, "cache_fraction is 1.5; it must be from 0 to 1"),
        ({"budget": -1}, "budget is -1; it must be 0 or more"),
        ({"codec": "int4"}, "codec 'int4' is not known"),
    ):
        with pytest.raises(QuarryError, match=message):
            open_engine(land, encoder_dir("dense"), **{"hot_bytes": 0, "budget": 0, **settings})


# -- a budget that is fitted ----------------------------------------------------------------


def ask_all(engine, n: int) -> None:
    """n requests whose hints are not their queries: some clusters are copied, some missed."""
    for i in range(n):
        engine.begin()
        engine.prefetch(f"a {SUBJECTS[i % 8]} of {PLACES[i % 6]}")
        settle(engine)
        engine.search([f"where is the {SUBJECTS[(i + 3) % 8]}?"], 3)
        engine.end_request()


def test_without_a_budget_it_is_that_of_the_latency_model_once_there_is_one(open_it) -> None:
    room = 2**24
    how = {"hot_bytes": room, "cache_fraction": 0.0, "depth": 2, "throttle": (2.0**20, 0.0)}
    engine = open_it(budget=None, **how)
    assert engine.budget == engine.stats()["budget_bytes"] == room, "nothing is known yet"
    ask_all(engine, FIT_AFTER - 1)
    assert engine.budget == room
    ask_all(engine, 1)
    model = fit(engine.traces())
    assert 0 < engine.budget == int(model.best_budget(room)) < room
    fixed = open_it(budget=room, **how)
    ask_all(fixed, FIT_AFTER)
    assert fixed.budget == room, "a number is a number"


def test_a_budget_stays_where_nothing_was_missed(open_it) -> None:
    engine = open_it(budget=None)
    for _ in range(FIT_AFTER):
        engine.prefetch("a volcano in Sicily")
        settle(engine)
        engine.search(["a volcano in Sicily"], 5)
    assert engine.stats()["misses"] == 0 and engine.budget == 2**24, "all that there is room for"


# -- what fails to open leaves nothing open -----------------------------------------------


def n_open_files() -> int:
    gc.collect()  # arrays that were mapped, held by an error's frames
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
@pytest.mark.parametrize("fails", ["hot", "throttle", "prefetcher"])
def test_an_engine_that_cannot_be_opened_leaves_no_file_open(
    land, monkeypatch, codec: str, fails: str
) -> None:
    def refuse(*_, **__) -> None:
        raise MemoryError

    settings = {"hot_bytes": 2**24, "budget": 0, "codec": codec}
    open_engine(land, encoder_dir("dense"), **settings).close()  # what is opened once for all
    if fails == "hot":
        monkeypatch.setattr("stages.serve.prefetch.tiers.available_bytes", lambda: 0)
    elif fails == "throttle":
        settings["throttle"] = (0.0, 0.0)
    else:
        monkeypatch.setattr("stages.serve.prefetch.version.Prefetcher", refuse)
    before = n_open_files()
    with pytest.raises((QuarryError, MemoryError)):
        open_engine(land, encoder_dir("dense"), **settings)
    assert n_open_files() == before


# -- damage while serving -------------------------------------------------------------------


def test_a_flipped_byte_fails_the_queries_that_need_it_and_no_others(
    open_it, tmp_path, store
) -> None:
    path = build(tmp_path / "hurt", LAND, store, nprobe=1)
    engine = open_it(path)
    file = engine._version.cold.file
    fine = engine.search_each(QUERIES, 3)
    broken = int(probe(engine, QUERIES[0]))
    with (path / "codes.npy").open("r+b") as f:
        f.seek(128 + int(file.offsets[broken]) * 384 * 4)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    found = engine.search_each(QUERIES, 3)
    concerned = [int(probe(engine, q)) == broken for q in QUERIES]
    assert any(concerned) and not all(concerned)
    for now, before, hurt in zip(found, fine, concerned, strict=True):
        if hurt:
            assert isinstance(now, QuarryError)
            assert f"index 'clustered', cluster {broken}: other bytes" in str(now)
        else:
            assert now == before
    with pytest.raises(Refused, match=f"cluster {broken}.*Rebuild it with: dvc repro -f"):
        engine.search(QUERIES, 3)
    engine.prefetch(QUERIES[0])
    settle(engine)
    assert engine.stats()["copy_errors"] == 1 and engine.stats()["failed"] > 0


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_flipped_byte_of_the_vectors_fails_the_queries_that_are_scored_again(
    open_it, tmp_path, store, codec: str
) -> None:
    path = build(tmp_path / "hurt", LAND, store, nprobe=1, codes=[codec])
    engine = open_it(path, codec=codec)
    file = engine._version.cold.file
    broken = int(probe(engine, QUERIES[0]))
    with (path / "codes.npy").open("r+b") as f:  # the short codes stay as they are
        f.seek(128 + int(file.offsets[broken]) * 384 * 4 + 3)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    fine = open_it(build(tmp_path / "fine", LAND, store, nprobe=1, codes=[codec]), codec=codec)
    expected = fine.search_each(QUERIES, 3)
    for _ in range(2):
        found = engine.search_each(QUERIES, 3)
        for query, now, right in zip(QUERIES, found, expected, strict=True):
            if int(probe(engine, query)) == broken:
                assert isinstance(now, QuarryError)
                assert f"index 'clustered', cluster {broken}: other bytes" in str(now)
            else:
                assert now == right
    assert engine.stats()["failed"] > 0


def test_in_a_run_the_question_that_needs_it_fails_alone(open_it, tmp_path, store) -> None:
    path = build(tmp_path / "hurt", LAND, store, nprobe=1)
    engine = open_it(path)
    broken = int(probe(engine, QUERIES[0]))
    with (path / "codes.npy").open("r+b") as f:
        f.seek(128 + int(engine._version.cold.file.offsets[broken]) * 384 * 4)
        f.write(b"\x00\x00\x00\x00")

    def strategy(question):
        hits = yield Search(question.text, 1)
        return Outcome(hits[0].docid)

    questions = [Question(str(i), q) for i, q in enumerate(QUERIES)]
    loop = run_loop(strategy, questions, Tools(retriever=engine))
    concerned = [int(probe(engine, q)) == broken for q in QUERIES]
    assert [bool(a.error) for a in loop.answered] == concerned
    assert f"cluster {broken}" in loop.answered[0].error
