"""The service for tests: a small corpus, the service over it in this process, its events."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn
from index_worlds import encoder_dir
from rooms import run_room, write_params
from strategies import passages_table

from stages import shell
from stages.serve.http.app import make_app
from stages.serve.http.catalogue import Catalogue
from stages.serve.http.command import listen
from stages.serve.http.limits import Limits
from stages.serve.http.wire import Http
from stages.tables import table, write_table

TEXTS = ["Lyon is in France.", "Turin is in Italy.", "Porto is in Portugal.", "Graz is in Austria."]
SEARCH = dict(strategy="search", corpus="c", index="words", encoder="none", triples="none",
              model="none", split="all")  # fmt: skip
DEFAULT = Limits()
RAG = SEARCH | dict(strategy="rag", model="lm", passage_tokens=20, max_tokens=8)


TOWNS = ["Lyon", "Turin", "Porto", "Graz", "Bonn", "Oslo", "Rome", "Kyoto", "Lima", "Cairo"]
ABOUT_TOWNS = [f"{town} has a {thing}." for town in TOWNS for thing in ("port", "tower", "market")]
DENSE = dict(corpus="c", model="minilm", centroids="none")
LOOKS = RAG | dict(
    strategy="hyde", index="clusters", encoder="minilm", hypotheses=1, hypothesis_tokens=60,
    temperature=0.0, passages=3, k=5,
)  # fmt: skip
FINDS = SEARCH | {"index": "clusters", "encoder": "minilm"}


def write_corpus(texts: list[str], locator: str = "towns.txt") -> None:
    """data/ingest/c of the project in the current folder, replaced at once as stages do it.

    Written in place, it would be cut short under a service that has it mapped.
    """
    passages = passages_table(*texts)
    rows = [
        dict(docid=d, title="", text="", content_hash="", dup_of="", meta="{}",
             locator=f"{locator}:{d}")
        for d in passages["parent"].to_pylist()
    ]  # fmt: skip
    with shell.replaced(Path("data/ingest/c")) as folder:
        write_table(passages, folder, "passages")
        write_table(table("documents", rows), folder, "documents")


def write_clustered(**more: dict[str, Any]) -> None:
    """A project whose entry ``ahead`` searches an index that fetches clusters ahead.

    ``more`` entries of 'serve', by name.
    """
    write_corpus(ABOUT_TOWNS)
    write_params(
        index={
            "middles": DENSE | dict(kind="centroids", nlist=8),
            "clusters": DENSE | dict(kind="clustered", centroids="middles", nprobe=3),
            "words": dict(kind="bm25", corpus="c", model="none", centroids="none"),
        },
        serve={"ahead": LOOKS, "find": FINDS, **more},
    )
    Path("data/finetune/minilm").symlink_to(encoder_dir("dense"))
    run_room("index", "middles")
    run_room("index", "clusters")


class Running:
    """A service behind a real port."""

    def __init__(self, catalogue: Catalogue, url: str) -> None:
        self.catalogue, self.url = catalogue, url
        self.client = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def metric(self, name: str, **labels: str) -> float:
        """A value of /metrics."""
        said = ",".join(f'{k}="{v}"' for k, v in labels.items())
        wanted = f"{name}{{{said}}} " if labels else f"{name} "
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(x.removeprefix(wanted)) for x in lines if x.startswith(wanted)), 0.0)


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, members) of the events in a response."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, orjson.loads(line.removeprefix("data: "))


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """A patience that no test's result depends on."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def running(
    catalogue: Catalogue, limits: Limits = DEFAULT, key: str | None = None, drain: float = 30
) -> Iterator:
    """The service, ready, for the length of the block; it must drain and end."""
    sock = listen("127.0.0.1", 0)
    app = make_app(catalogue, limits, key, lambda: len(server.server_state.connections))
    config = uvicorn.Config(
        app, http=Http, log_config=None, lifespan="on", timeout_graceful_shutdown=drain
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    service = Running(catalogue, f"http://127.0.0.1:{sock.getsockname()[1]}")
    try:
        wait_until(lambda: not catalogue.opening, "the catalogue is open")
        service.server = server
        yield service
    finally:
        service.client.close()
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive(), "the service did not end"
