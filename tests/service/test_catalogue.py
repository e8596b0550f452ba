"""What the catalogue does when something cannot be opened; engines are fakes that count."""

import asyncio
import threading
from pathlib import Path

import pytest
from http_worlds import DENSE, SEARCH
from index_worlds import encoder_dir
from rooms import run_room, write_params

from stages.effects import Search
from stages.serve.asked import Ahead
from stages.serve.http import app, catalogue
from stages.serve.http.app import make_app
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.limits import Limits
from stages.tools import Tools
from stages.types import Hit

INDEX = Path("data/index/words")


class Engine:
    """A retriever that finds one document, and notes that it was closed."""

    fingerprint = "engine"

    def __init__(self, docid: str) -> None:
        self.docid, self.closed = docid, 0

    def search(self, queries, k):
        return [[Hit(self.docid, 1.0)] for _ in queries]

    def close(self) -> None:
        self.closed += 1


class Engines:
    """Instead of ``lookahead.open_ahead``: all that were opened."""

    def __init__(self, docid: str = "d0#0") -> None:
        self.docid, self.opened = docid, []
        self.may_open, self.begun = threading.Event(), threading.Event()
        self.may_open.set()

    def __call__(self, index: Path, encoder: Path | None, how: Ahead) -> Engine:
        self.begun.set()
        assert self.may_open.wait(60)
        self.opened.append(Engine(self.docid))
        return self.opened[-1]


@pytest.fixture
def engines(project, monkeypatch) -> Engines:
    monkeypatch.setattr(catalogue, "_kind", lambda index: catalogue.AHEAD)
    return Engines()


def change(engines: Engines, docid: str, looks: int, held: Catalogue) -> None:
    """The index is another; what it finds now is ``docid``."""
    engines.docid = docid
    (INDEX / f"part{len(list(INDEX.iterdir()))}").touch()
    for _ in range(looks):
        held.look()


def test_a_failed_reopening_closes_its_engine_and_waits_for_another_folder(engines):
    held = Catalogue(read_entries(["find"]), open_ahead=engines)
    held.open()
    change(engines, "of-no-corpus", 6, held)
    assert [e.closed for e in engines.opened] == [0, 1] and held.reopened["failed"] == 1
    change(engines, "of-no-corpus", 2, held)
    assert [e.closed for e in engines.opened] == [0, 1, 1] and held.reopened["failed"] == 2
    change(engines, "d1#0", 6, held)
    assert [e.closed for e in engines.opened] == [1, 1, 1, 0] and held.reopened["new"] == 1
    held.close()
    assert [e.closed for e in engines.opened] == [1, 1, 1, 1]


def test_what_nobody_foresaw_is_one_entrys_reason_and_a_sound_folder_opens_it(engines, caplog):
    engines.docid = "of-no-corpus"
    held = Catalogue(read_entries(["find", "closed"]), open_ahead=engines)
    held.open()
    assert not held.opening
    assert held.why == dict.fromkeys(["find", "closed"], "KeyError: 'of-no-corpus'")
    assert "serve.find cannot be served: KeyError" in caplog.text
    for _ in range(5):
        held.look()
    assert [e.closed for e in engines.opened] == [1, 1], "one for each entry, and no more"
    change(engines, "d0#0", 2, held)
    assert held.why == {} and [e.closed for e in engines.opened] == [1, 1, 0]
    held.close()


def test_an_index_that_is_first_built_after_the_start_is_opened(project):
    elsewhere = INDEX.rename("data/index/later")
    held = Catalogue(read_entries(["find"]))
    held.open()
    held.look()
    assert "is missing" in held.why["find"]
    elsewhere.rename(INDEX)
    held.look()
    assert held.why, "seen once, it may still change"
    held.look()
    assert held.why == {}
    with held.borrow(held.entries["find"]) as opened:
        assert opened.shelf.retriever.search(["Lyon"], 1)[0][0].docid == "d0#0"
    held.close()


def test_close_waits_for_the_entry_that_is_being_opened_and_no_other_is_begun(engines):
    held = Catalogue(read_entries(["find", "closed"]), open_ahead=engines)
    engines.may_open.clear()
    opening = threading.Thread(target=held.open)
    opening.start()
    assert engines.begun.wait(60)
    closing = threading.Thread(target=held.close)
    closing.start()
    while not held._closing:
        pass
    engines.may_open.set()
    opening.join(60)
    closing.join(60)
    assert [e.closed for e in engines.opened] == [1]
    assert "closed" in held.why and held.desks == {} and not held.opening


def test_looks_go_on_after_one_that_failed_and_the_catalogue_is_closed_at_the_end(monkeypatch):
    monkeypatch.setattr(app, "LOOK", 0)
    done, looked = [], asyncio.Event()

    class Broken(Catalogue):
        def open(self):
            done.append("open")
            raise OSError("disk")

        def look(self):
            done.append("look")
            if done.count("look") == 3:
                loop.call_soon_threadsafe(looked.set)
            raise ValueError("odd")

        def close(self):
            done.append("close")

    async def live():
        nonlocal loop
        loop = asyncio.get_running_loop()
        service = make_app(Broken({}), Limits())
        async with service.router.lifespan_context(service):
            await asyncio.wait_for(looked.wait(), 60)
            raise InterruptedError

    loop = None
    with pytest.raises(InterruptedError):
        asyncio.run(live())
    assert done[0] == "open" and done.count("look") >= 3 and done[-1] == "close"


def test_an_index_is_searched_by_the_first_of_its_entries_that_is_open(project):
    held = Catalogue(read_entries(["find", "read", "gone"]))
    for name in ("words", None):
        held.why = dict.fromkeys(held.entries, "it is being opened")
        assert held.searching(name).name == "find", "none is open"
        del held.why["read"]
        assert held.searching(name).name == "read"
        del held.why["find"]
        assert held.searching(name).name == "find"
    assert held.indexes == ["words", "not-built"] and held.searching("lm") is None
    assert held.searching("none") is None


def test_an_entry_that_needs_more_than_an_index_and_a_model_says_so(project):
    entry = read_entries(["find"])["find"]
    values = entry.values.model_copy(update={"triples": "t", "facts": "f"})
    held = Catalogue({"find": entry._replace(values=values)})
    held.open()
    assert held.why["find"] == (
        "it needs triples, facts, which the service does not open; "
        "dvc repro serve@find runs it over its questions."
    )
    held.close()


def test_a_search_that_a_model_reads_is_never_made_in_the_event_loop(project, monkeypatch):
    """Its time is not that of the searching thread, by which a search is found to be brief."""
    write_params(
        index={"flat": DENSE | {"kind": "flat", "threads": 2}},
        serve={"find": SEARCH | {"index": "flat", "encoder": "minilm"}},
    )
    Path("data/finetune/minilm").symlink_to(encoder_dir("dense"))
    run_room("index", "flat")
    held, names = Catalogue(read_entries(["find"])), []
    held.open()
    with held.borrow(held.entries["find"]) as opened:
        search = opened.shelf.retriever.search
        monkeypatch.setattr(
            opened.shelf.retriever,
            "search",
            lambda *asked, k: names.append(threading.current_thread().name) or search(*asked, k),
        )
        monkeypatch.setattr(opened.searcher, "_each", 0.0)
        asked = Search("Where is Lyon?", 1), Tools(retriever=opened.shelf.retriever)
        hits = asyncio.run(opened.searcher.ask(*asked))
    held.close()
    assert hits[0].docid == "d0#0" and len(names) == 1 and names[0].startswith("searcher")
