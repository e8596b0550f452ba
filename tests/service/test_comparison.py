"""Two answers that are compared differ in time alone: seeds, lengths and what is in memory."""

from pathlib import Path

import pytest
import yaml
from http_worlds import read_events, running, write_clustered

from stages.serve.http.bodies import AnswerBody
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.replay import KEPT, Record, Records, Retold, as_long
from stages.types import Generation, Request

QUESTION = "Which town has a tower?"


@pytest.fixture
def service(project: Path):
    write_clustered()
    said = yaml.safe_load(Path("params.yaml").read_text())
    said["serve"]["ahead"]["temperature"] = 1.0  # what is drawn depends on the question's id
    Path("params.yaml").write_text(yaml.safe_dump(said))
    with running(Catalogue(read_entries(), {"hot_mib": 4, "budget_mib": 1})) as service:
        yield service


def ask(service, comparison: str | None, *, lookahead: bool, question: str = QUESTION) -> list:
    body = {"question": question, "entry": "ahead", "lookahead": lookahead}
    if comparison:
        body["comparison"] = comparison
    with service.client.stream("POST", "/answer", json=body) as response:
        return list(read_events(response.iter_lines()))


def of(told: list, name: str) -> list[dict]:
    return [members for named, members in told if named == name]


def texts(told: list) -> list[tuple]:
    steps = [e for e in of(told, "step") if e["kind"] == "LLM"]
    return [(e["gave"], e["tokens_in"], e["tokens_out"]) for e in steps]


def spoken(told: list) -> str:
    return "".join(e["text"] for e in of(told, "token"))


def test_without_a_comparison_the_same_question_is_drawn_anew(service):
    one, other = ask(service, None, lookahead=False), ask(service, None, lookahead=False)
    assert texts(one)[0] != texts(other)[0]
    assert of(one, "start")[0]["id"] != of(other, "start")[0]["id"]


@pytest.mark.parametrize("ahead_first", [False, True])
def test_both_runs_draw_alike_write_the_same_tokens_and_begin_cold(service, ahead_first):
    ask(service, None, lookahead=True)  # leaves clusters, vectors and prompts behind
    engine = service.catalogue.shelf(service.catalogue.entries["ahead"]).retriever
    assert engine.stats()["resident"] > 0 or engine.stats()["copied_clusters"] > 0
    runs = {}
    for ahead in (ahead_first, not ahead_first):
        before = engine.stats()["copied_clusters"]
        runs[ahead] = ask(service, "c1", lookahead=ahead)
        copied = engine.stats()["copied_clusters"] - before
        assert copied == (8 if ahead else 0), "nothing was there, whichever runs first"
    none, ahead = runs[False], runs[True]
    assert of(none, "start")[0]["id"] == of(ahead, "start")[0]["id"]
    assert texts(none) == texts(ahead) and spoken(none) == spoken(ahead) != ""
    assert of(none, "done")[0]["answer"] == of(ahead, "done")[0]["answer"]
    assert sum(e["hits"] for e in of(none, "clusters")) == 0
    calls = len(texts(none))
    done = [
        of(runs[which], "done")[0]["counts"]["replayed"] for which in (ahead_first, not ahead_first)
    ]
    assert done == [0, calls], "the second replays all that the first recorded"


def test_a_generator_that_writes_something_else_is_heard_for_as_long_and_not_believed(
    service, monkeypatch
):
    first = ask(service, "c2", lookahead=False)
    desk = service.catalogue.desks["lm"]
    asked, submit = [], desk.submit

    def other(request, hear):  # as a server does that does not repeat itself
        if isinstance(request, Request):
            asked.append((request.max_tokens, request.stop))
            request = request._replace(seed=request.seed + 1)
        return submit(request, hear)

    monkeypatch.setattr(desk, "submit", other)
    second = ask(service, "c2", lookahead=False)
    assert asked == [(n, ()) for _, _, n in texts(first)]
    assert texts(second) == texts(first) and spoken(second) == spoken(first)
    fresh = ask(service, "c2", lookahead=False, question=QUESTION + "?")
    assert of(fresh, "done")[0]["counts"]["replayed"] == 0, "another question is another record"


# -- records ------------------------------------------------------------------------------------


def test_a_record_keeps_the_first_result_and_none_that_was_cut():
    record, cut = Record("r"), Generation("Ly", 3, 1, "cancelled")
    record.keep("a", cut)
    assert record.known("a") is None
    record.keep("a", whole := Generation("Lyon", 3, 2, "stop"))
    record.keep("a", Generation("Paris", 3, 9, "length"))
    record.keep("b", 0)
    record.keep("c", OSError("gone"))
    assert record.known("a") == whole and record.known("b") == 0 and record.known("c") is None
    assert as_long(Request("x", 50, ("\n",), seed=4), whole) == Request("x", 2, (), seed=4)


def test_records_are_by_id_entry_question_and_options_and_the_oldest_go():
    records, body = Records(), AnswerBody(question="q", comparison="c")
    first = records.of("e", body)
    assert records.of("e", body) is first
    others = [
        records.of("f", body), records.of("e", body.model_copy(update={"question": "p"})),
        records.of("e", body.model_copy(update={"options": ["q"]})),
        records.of("e", body.model_copy(update={"max_tokens": 3})),
        records.of("e", body.model_copy(update={"comparison": "d"})),
    ]  # fmt: skip
    assert len({r.name for r in (first, *others)}) == 6
    for n in range(KEPT):
        records.of(f"g{n}", body)
    assert records.of("e", body) is not first and records.of("e", body).name == first.name


def test_a_recorded_text_is_told_whole_whatever_pieces_come():
    known = Generation("Lyon is", 1, 2, "stop")
    for pieces in (["ab", "cde", "fghijkl"], ["a"], [], ["abcdefg"]):
        retold = Retold(known)
        assert "".join(map(retold.piece, pieces)) + retold.rest() == "Lyon is"
