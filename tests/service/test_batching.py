"""Continuous batching: counted in token steps and events, never in seconds."""

import asyncio
import threading
from functools import partial

import pytest
from http_worlds import wait_until

from stages.asking import Asking
from stages.effects import LLM, Choice, Outcome, Question, Search
from stages.lm import LocalGenerator
from stages.serve.http import searching
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.driving import Driver
from stages.serve.http.generation import Desk
from stages.serve.http.searching import Searcher
from stages.tools import Tools
from stages.types import Generation, Hit, Request, TokenEvent

LONG = "The town"  # after this prompt the tiny model writes 200 tokens and more
WHERE = Question("q", "Where is Lyon?")


class Counting(LocalGenerator):
    """Numbers the looks between token steps, and notes who ran in the step after each."""

    def stream(self, inbox):
        self.look, self.log = 0, []  # (look, name, text, done)
        for event in super().stream(_Looked(self, inbox)):
            self.log.append((self.look, event.request_id, event.done))
            yield event


class _Looked:
    def __init__(self, generator, inbox):
        self.generator, self.inbox = generator, inbox
        self.closed = inbox.closed

    def cancelled(self):
        self.generator.look += 1
        self.before_step(self.generator.look)
        return self.inbox.cancelled()

    def admit(self, room):
        self.generator.room = room
        return self.inbox.admit(room)

    def before_step(self, look):
        if act := getattr(self.generator, "acts", {}).pop(look, None):
            act()


@pytest.fixture
def generator(made):
    return Counting(made / "data/finetune/lm")


@pytest.fixture
def desk(generator):
    desk = Desk(generator)
    yield desk
    desk.close()


def listen():
    """(what was heard, an event that its end sets, the hearer)."""
    heard, ended = [], threading.Event()

    def hear(said):
        heard.append(said)
        if not isinstance(said, str):
            ended.set()

    return heard, ended, hear


def test_a_second_request_speaks_before_a_running_one_of_200_tokens_ends(generator, desk):
    first, second = listen(), listen()
    # At look 20, in the middle of the first text, the second request comes.
    generator.acts = {20: lambda: desk.submit(Request(LONG, 5), second[2])}
    desk.submit(Request(LONG, 200), first[2])
    assert first[1].wait(60) and second[1].wait(60)
    assert first[0][-1].tokens_out == 200 and second[0][-1].tokens_out == 5
    spoke = {name: [look for look, n, _ in generator.log if n == name] for name in "01"}
    assert spoke["1"][0] in (20, 21), "it is let in at the next look"
    assert spoke["1"][-1] < spoke["0"][-1], "and has ended long before the first"
    assert spoke["0"] == list(range(spoke["0"][0], spoke["0"][0] + 200)), "which waits for no one"
    assert "".join(s for s in second[0] if isinstance(s, str)) == second[0][-1].text


def test_a_request_that_is_given_up_frees_its_row_within_two_token_steps(generator, desk):
    first, other = listen(), listen()
    calls = {}
    calls["first"] = desk.submit(Request(LONG, 200), first[2])
    desk.submit(Request(LONG, 200), other[2])
    generator.acts = {40: lambda: desk.give_up(calls["first"])}
    assert first[1].wait(60) and other[1].wait(60)
    end = next(look for look, name, done in generator.log if name == "0" and done)
    assert end in (40, 41, 42)
    assert first[0][-1].finish == "cancelled" and first[0][-1].tokens_out < 60
    assert other[0][-1].tokens_out == 200, "its neighbour goes on"
    assert desk.running == 0


def test_a_request_that_is_given_up_before_it_began_never_runs(generator, desk):
    heard, _, hear = listen()
    gate = threading.Event()
    generator.acts = {5: gate.wait}
    last = listen()
    desk.submit(Request(LONG, 20), last[2])
    wait_until(lambda: generator.acts == {}, "look 5")
    desk.give_up(desk.submit(Request(LONG, 20), hear))
    gate.set()
    assert last[1].wait(60) and heard == []


def test_a_choice_is_made_between_token_steps_of_a_running_text(generator, desk):
    text, choice = listen(), listen()
    asked = Choice("Lyon is in", [" France", " Italy"])
    generator.acts = {20: lambda: desk.submit(asked, choice[2])}
    desk.submit(Request(LONG, 100), text[2])
    assert text[1].wait(60) and choice[1].wait(60)
    (logps,) = generator.choose([asked.prompt], [list(asked.options)])
    assert choice[0] == [logps.index(max(logps))]
    other = listen()
    weights = (1e-9, 1.0) if choice[0] == [0] else (1.0, 1e-9)
    desk.submit(asked._replace(weights=weights), other[2])
    assert other[1].wait(60) and other[0] == [1 - choice[0][0]], "an option may weigh more"
    alone = generator.generate([Request(LONG, 100)])[0]
    assert text[0][-1] == alone, "the text is what it is without the choice"


def test_a_request_that_no_generator_could_run_is_refused_before_it_harms_others(desk):
    with pytest.raises(Exception, match="not a request"):
        desk.submit(Request("x", 3, stop=("",)), lambda said: None)


def test_when_the_stream_fails_what_ran_in_it_ends_and_the_next_request_is_answered(
    generator, desk, monkeypatch
):
    step, broken = generator._model.step, iter([True])

    def fails_once(*args):
        if generator.look >= 10 and next(broken, False):
            raise RuntimeError("no memory")
        return step(*args)

    monkeypatch.setattr(generator._model, "step", fails_once)
    first, second = listen(), listen()
    desk.submit(Request(LONG, 50), first[2])
    assert first[1].wait(60) and "no memory" in str(first[0][-1])
    desk.submit(Request(LONG, 5), second[2])
    assert second[1].wait(60) and isinstance(second[0][-1], Generation)


def test_closing_finishes_what_was_asked(generator):
    desk = Desk(generator)
    heard, ended, hear = listen()
    desk.submit(Request(LONG, 30), hear)
    desk.close()
    assert ended.is_set() and heard[-1].tokens_out == 30
    with pytest.raises(Exception, match="shutting down"):
        desk.submit(Request(LONG, 3), hear)


class Server:
    """A remote generator: whoever asks "break" loses its connection, the others are answered."""

    fingerprint, context = "server", None

    def __init__(self):
        self.together = threading.Barrier(3, timeout=60)

    def stream(self, inbox):
        while not inbox.closed():
            assert not list(inbox.cancelled())
            for name, request in inbox.admit(16):
                self.together.wait()  # three streams side by side
                if request.prompt == "break":
                    raise OSError("broke off")
                yield TokenEvent(name, request.prompt, None)
                yield TokenEvent(name, "", Generation(request.prompt, 1, 1, "stop"))


def test_of_a_remote_model_a_connection_that_breaks_ends_one_text_and_no_other():
    desk = Desk(Server())
    heard = [listen() for _ in range(3)]
    for prompt, (_, _, hear) in zip(("a", "break", "b"), heard, strict=True):
        desk.submit(Request(prompt, 5), hear)
    assert all(ended.wait(60) for _, ended, _ in heard)
    assert [said[-1].text for said, _, _ in (heard[0], heard[2])] == ["a", "b"]
    assert isinstance(heard[1][0][-1], OSError) and desk.running == 0
    desk.close()


# -- searches ---------------------------------------------------------------------------------


class Index:
    """Fails for the query "bad"; a gate holds the first call."""

    fingerprint = "index"

    def __init__(self):
        self.batches, self.gate = [], threading.Event()

    def search(self, queries, k):
        self.batches.append(list(queries))
        if queries == ["first"]:
            self.gate.wait(60)
        if "bad" in queries:
            raise OSError("cold read error")
        return [[Hit(f"{q}#0", 1.0)][:k] for q in queries]


def test_searches_that_wait_together_are_one_call_and_a_bad_one_fails_alone():
    index, searcher = Index(), Searcher()
    tools = Tools(retriever=index)
    first = searcher.submit(Search("first", 3), tools)
    wait_until(lambda: index.batches == [["first"]], "the first search runs")
    later = [searcher.submit(Search(q, 3), tools) for q in ("a", "bad", "b")]
    deeper = searcher.submit(Search("c", 9), tools)
    index.gate.set()
    assert first.result(60) == [Hit("first#0", 1.0)]
    assert later[0].result(60) == [Hit("a#0", 1.0)] and later[2].result(60) == [Hit("b#0", 1.0)]
    with pytest.raises(OSError, match="cold read"):
        later[1].result(60)
    assert deeper.result(60) == [Hit("c#0", 1.0)]
    assert index.batches == [["first"], ["a", "bad", "b"], ["a"], ["bad"], ["b"], ["c"]]
    searcher.close()


def test_who_came_too_late_goes_with_those_who_are_answered_and_ask_again(monkeypatch):
    monkeypatch.setattr(searching, "PATIENCE", 1e6)
    index, searcher = Index(), Searcher()
    tools = Tools(retriever=index)
    first = searcher.submit(Search("first", 3), tools)
    wait_until(lambda: index.batches == [["first"]], "the first search runs")
    late = searcher.submit(Search("late", 3), tools)
    index.gate.set()
    assert first.result(60) == [Hit("first#0", 1.0)]
    again = searcher.submit(Search("again", 3), tools)
    assert (late.result(60), again.result(60)) == ([Hit("late#0", 1.0)], [Hit("again#0", 1.0)])
    assert index.batches == [["first"], ["late", "again"]]
    searcher.close()


def test_as_many_searches_as_the_index_bears_run_side_by_side():
    class Meeting(Index):
        both = threading.Barrier(2)

        def search(self, queries, k):
            self.both.wait(60)
            return super().search(queries, k)

    before = threading.active_count()
    searcher, tools = Searcher(threads=2), Tools(retriever=Meeting())
    first = searcher.submit(Search("a", 3), tools)
    wait_until(lambda: Meeting.both.n_waiting, "the first search waits for the second")
    second = searcher.submit(Search("b", 3), tools)
    assert (first.result(60), second.result(60)) == ([Hit("a#0", 1.0)], [Hit("b#0", 1.0)])
    searcher.close()
    assert threading.active_count() == before, "both have ended"


# -- questions --------------------------------------------------------------------------------


@pytest.fixture
def catalogue(project):
    catalogue = Catalogue(read_entries(["read"]))
    catalogue.open()
    yield catalogue
    catalogue.close()


def drive(catalogue, strategies):
    """Answers and events of strategies that run side by side."""

    async def all_of_them():
        with catalogue.borrow(catalogue.entries["read"]) as opened:
            tools = Tools(opened.desk.generator, opened.shelf.retriever)
            told = [[] for _ in strategies]
            return await asyncio.gather(*(
                Driver(opened, tools, Asking(tools), lambda *e, log=log: log.append(e), 0.0).run(
                    Question(f"q{i}", "Where is Lyon?"), strategy
                )
                for i, (strategy, log) in enumerate(zip(strategies, told, strict=True))
            )), told  # fmt: skip

    return asyncio.run(all_of_them())


def reads(question, k=2, tokens=20):
    hits = yield Search(question.text, k)
    reply = yield LLM(Request(LONG, tokens))
    return Outcome(reply.text, docids=[h.docid for h in hits])


def raises(question):
    yield LLM(Request(LONG, 3))
    raise ValueError("no entity")


def asks_too_much(question):
    yield LLM(Request("word " * 3000, 10))


def searches_badly(question):
    yield Search(question.text, 0)


def test_questions_that_fail_harm_no_other(catalogue):
    bad = [raises, asks_too_much, searches_badly]
    answered, _ = drive(catalogue, [reads, *bad, partial(reads, k=1)])
    alone, _ = drive(catalogue, [reads, partial(reads, k=1)])
    assert [a.outcome for a in (answered[0], answered[4])] == [a.outcome for a in alone]
    assert [bool(a.error) for a in answered] == [False, True, True, True, False]
    assert "no entity" in answered[1].error and "context" in answered[2].error


def test_a_question_whose_client_has_gone_frees_its_row_within_two_token_steps(project):
    catalogue = Catalogue(read_entries(["read"]))
    catalogue._desks["lm"] = desk = Desk(Counting(project / "data/finetune/lm"))
    catalogue.open()
    ended = threading.Event()

    async def leave_at_look_40():
        with catalogue.borrow(catalogue.entries["read"]) as opened:
            tools = Tools(opened.desk.generator, opened.shelf.retriever)
            driver = Driver(opened, tools, Asking(tools), lambda *event: None, 0.0)
            task = asyncio.create_task(driver.run(WHERE, partial(reads, tokens=200)))
            task.add_done_callback(lambda _: ended.set())
            loop = asyncio.get_running_loop()

            def leave():
                loop.call_soon_threadsafe(task.cancel)
                assert ended.wait(60)

            desk.generator.acts = {40: leave}
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave_at_look_40())
    catalogue.close()
    ((look, done),) = [(look, done) for look, _, done in desk.generator.log if done]
    assert done.finish == "cancelled" and look in (40, 41, 42)


def test_events_tell_the_text_as_it_comes_and_every_step_with_its_times(catalogue):
    (answered,), (told,) = drive(catalogue, [reads])
    names = [name for name, _ in told]
    assert names[:3] == ["begin", "evidence", "step"] and names[-1] == "step"
    assert "".join(e["text"] for name, e in told if name == "token") in answered.outcome.answer
    steps = [e for name, e in told if name == "step"]
    assert [(e["no"], e["kind"]) for e in steps] == [(0, "Search"), (1, "LLM")]
    assert steps[0]["start_ms"] <= steps[0]["end_ms"] <= steps[1]["start_ms"] <= steps[1]["end_ms"]
    assert steps[1]["tokens_out"] == answered.counts.tokens_out == 20
    (evidence,) = [e for name, e in told if name == "evidence"]
    assert [h["docid"] for h in evidence["hits"]] == answered.outcome.docids
    first = evidence["hits"][0]
    assert first["parent"] == "d0" and first["locator"] == "towns.txt:d0"
