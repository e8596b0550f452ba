"""A promotion while the service answers: no request may fail, and the new document must be found.

In a clone of this checkout, which must be built (``make run``), with its cache: a first retraining
promotes what is built, and the HTTP service serves it from ``.quarry/served``. Then clients search
three indexes and ask for answers, one request after the other, while a document is added to
``ingest.mine`` and a retraining builds, compares and promotes. It must end in production, every
request with 200, and the document among the hits. About three minutes on 2 cores.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.harness import ROOT, scratch_clone
from benchmarks.retrain import commit, retrain
from benchmarks.serve import is_ready
from flows.promote import SERVED

WORD = "zebrafinch"
TEXT = f"# Birds\n\nThe {WORD} song is learned from a tutor in the first ninety days of life.\n"
SEARCHES = [
    ("bm25-mine", f"{WORD} song"),
    ("flat-mine", f"{WORD} song"),
    ("flat-semanlink", "machine learning"),
]
ENTRY = "rag-fanoutqa-leaf"
PAUSE, AFTER = 0.05, 6.0  # seconds between two searches; that clients go on after the promotion


class Told(NamedTuple):
    """One request."""

    what: str
    status: int | str  # of HTTP, or what went wrong
    at: float  # monotonic, when it had ended
    seconds: float
    found: bool  # the new document is among the hits


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """The URL of the service of a checkout, once all is open."""
    argv = [sys.executable, "-m", "stages.serve", "http", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(
        argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            url = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
            while not is_ready(url):
                assert process.poll() is None, "the service ended"
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def requests() -> dict[str, tuple[str, Iterator[dict]]]:
    """By client: the path, and its bodies. No two questions are alike: none is answered before."""
    searches = {
        index: ("/search", itertools.repeat({"query": query, "k": 5, "index": index}))
        for index, query in SEARCHES
    }
    questions = (
        {"question": f"Who wrote book number {n}?", "entry": ENTRY, "stream": False}
        for n in itertools.count(1)
    )
    return {**searches, "answers": ("/answer", questions)}


def ask(url: str, what: str, path: str, bodies: Iterator[dict], told: list[Told], stop) -> None:
    """Requests one after the other, until ``stop``."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.wait(PAUSE):
            start, found = time.monotonic(), False
            try:
                reply = client.post(path, json=next(bodies))
                status: int | str = reply.status_code
                found = path == "/search" and WORD in reply.text
            except httpx.HTTPError as error:
                status = repr(error)
            now = time.monotonic()
            told.append(Told(what, status, now, now - start, found))


@contextmanager
def asking(url: str) -> Iterator[list[Told]]:
    """What the clients were told, from the start of the block to its end."""
    told: list[Told] = []
    stop = threading.Event()
    clients = [
        threading.Thread(target=ask, args=(url, what, path, bodies, told, stop))
        for what, (path, bodies) in requests().items()
    ]
    for client in clients:
        client.start()
    try:
        yield told
    finally:
        stop.set()
        for client in clients:
            client.join()


def measure() -> None:
    """In the clone that is the current folder. Prints a JSON line."""
    first, _ = retrain("Promoted")
    with service(SERVED.resolve()) as url, asking(url) as told:
        Path("examples/mine/birds.md").write_text(TEXT, encoding="utf-8")
        commit("a document")
        begun = time.monotonic()
        seconds, _ = retrain("Promoted")
        time.sleep(AFTER)
    failed = [t for t in told if t.status != 200]
    seen = [t.at for t in told if t.found]
    assert seen, "the new document was never found"
    print(json.dumps({
        "benchmark": "promotion under load", "unit": "s", "first promotion": round(first, 1),
        "retraining": round(seconds, 1), "found after": round(min(seen) - begun, 1),
        "requests": Counter(t.what for t in told), "failed": len(failed),
        "longest": round(max(t.seconds for t in told), 2),
    }))  # fmt: skip
    assert not failed, failed[:5]


def main() -> None:
    """See the module."""
    if not (ROOT / "data/index/flat-mine/meta.json").is_file():
        print("promotion: nothing is built here (make run); nothing measured", file=sys.stderr)
        return
    with scratch_clone():
        Path(".dvc/cache").symlink_to(ROOT / ".dvc/cache")
        measure()


if __name__ == "__main__":
    main()
