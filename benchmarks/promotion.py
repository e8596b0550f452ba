"""A promotion while the service answers: no request may fail, and the new document must be found.

In a clone of this checkout, which must be built (``make run``), with its cache: a first retraining
promotes what is built, and the HTTP service serves it from ``.quarry/served``. Then clients search
three indexes and ask for answers, one request after the other, while a document is added to
``ingest.mine`` and a retraining builds, compares and promotes. It must end in production, every
request with 200, and the document among the hits. About three minutes on 2 cores.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.retrain import ROOT, commit, retrain
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


def ask(url: str, path: str, what: str, bodies: Iterator[dict], told: list[Told], stop) -> None:
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


def searches(index: str, query: str) -> Iterator[dict]:
    while True:
        yield {"query": query, "k": 5, "index": index}


def questions() -> Iterator[dict]:
    """No two alike: none is answered from memory."""
    n = 0
    while True:
        n += 1
        yield {"question": f"Who wrote book number {n}?", "entry": ENTRY, "stream": False}


def measure() -> None:
    """In the clone that is the current folder. Prints a JSON line."""
    first, _ = retrain("Promoted")
    told: list[Told] = []
    stop = threading.Event()
    with service(SERVED.resolve()) as url:
        clients = [
            threading.Thread(target=ask, args=(url, "/search", i, searches(i, q), told, stop))
            for i, q in SEARCHES
        ]
        asked = (url, "/answer", "answers", questions(), told, stop)
        clients.append(threading.Thread(target=ask, args=asked))
        for client in clients:
            client.start()
        Path("examples/mine/birds.md").write_text(TEXT, encoding="utf-8")
        commit("a document")
        begun = time.monotonic()
        seconds, _ = retrain("Promoted")
        time.sleep(AFTER)
        stop.set()
        for client in clients:
            client.join()
    failed = [t for t in told if t.status != 200]
    seen = min((t.at for t in told if t.found), default=None)
    assert seen is not None, "the new document was never found"
    names = [*(index for index, _ in SEARCHES), "answers"]
    print(json.dumps({
        "benchmark": "promotion under load", "unit": "s", "first promotion": round(first, 1),
        "retraining": round(seconds, 1), "found after": round(seen - begun, 1),
        "requests": {name: sum(t.what == name for t in told) for name in names},
        "failed": len(failed), "longest": round(max(t.seconds for t in told), 2),
    }))  # fmt: skip
    assert not failed, failed[:5]


def main() -> None:
    """See the module."""
    if not (ROOT / "data/index/flat-mine/meta.json").is_file():
        print("promotion: nothing is built here (make run); nothing measured", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "-q", "--no-tags", str(ROOT), f"{folder}/clone"]
        subprocess.run(clone, check=True)
        os.chdir(f"{folder}/clone")
        Path(".dvc/cache").symlink_to(ROOT / ".dvc/cache")
        for name in ("QUARRY_RECORDS", "PREFECT_API_URL"):
            os.environ.pop(name, None)
        os.environ |= {
            "PYTHONPATH": os.getcwd(), "PREFECT_HOME": f"{os.getcwd()}/.quarry/prefect",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        measure()


if __name__ == "__main__":
    main()
