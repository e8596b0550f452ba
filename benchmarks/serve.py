"""The HTTP service under a closed loop of clients, against the batch engine on the same questions.

A server process, and beside it a process of clients: each sends its next request when the last one
is answered. Printed for ``/search`` (k = 10) and for ``/answer`` (at most 32 tokens, all questions
distinct, no cache): offered, completed, rejected (429) and failed requests, p50/p95/p99, the
server's memory at second 10 and at the end, requests a second, and those of the batch engine
(``run_loop`` with as many questions open as there are clients) on the questions that were
completed: the ratio. The engine has the machine alone, the service shares it with the clients;
``cpu_ms`` is what a request computes, in the server and in the engine. ``/search`` is asked of a
BM25 index, where a search is cheaper than any HTTP, and of a dense one.

``--index`` and ``--entry`` name others: an index of kind clustered is searched from its file, and
an entry over one answers while its clusters are fetched ahead, by the entry's block ``ahead`` in
the service and in the batch engine. ``ahead`` then has the probed clusters that were in memory and
those that were read when the query was known, and bytes copied ahead: of ``/search`` none, which
gives no hints.

``floor`` is what HTTP alone allows on this machine, measured in the same run by the same clients:
``bare``, a process of uvicorn and our parser whose application answers the same requests with an
empty object and does nothing else; ``route``, the service's own ``/healthz``. ``bound`` is the
ratio that a server would have whose request took the bare one's time and the engine's, and no more:
1 / (1 + theirs / bare). Clients of ``/search`` speak HTTP over bare sockets: 30 us a request, where
httpx takes 500 us of the machine that the server needs.

Then four times as many clients as the server takes: 429s, nothing failed, and how long it takes
after them until requests are taken again.

The questions are training questions of FanOutQA, then their texts with a number: no two are alike.
The server is started for each part. ``--seconds 60`` is the figure in docs/serving.md.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from stages import params
from stages.effects import Outcome, Question, Search, Steps
from stages.loop import run_loop
from stages.serve.__main__ import as_requests, open_tools
from stages.serve.asked import Library, pick_questions
from stages.serve.http.catalogue import read_entries
from stages.shell import Task
from stages.tables import read_table

ENTRY = "rag-fanoutqa-leaf"
CORPUS = Path("data/ingest/fanoutqa-leaf")
INDEXES = ["bm25-fanoutqa-leaf", "flat-fanoutqa-leaf"]
TOKENS, K = 32, 10
AT_SECOND = 10  # at which memory is looked at first
OVER = 4  # times as many clients as places


class Told(NamedTuple):
    """One request: when it began and ended (``monotonic``), and its status; 0: no answer."""

    text: str
    start: float
    end: float
    status: int


def main() -> None:
    """Print one JSON line per part."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seconds", type=float, default=60.0)
    p.add_argument("--clients", type=int, default=4)
    p.add_argument("--index", action="append", help="that /search searches; may be repeated")
    p.add_argument("--entry", default=ENTRY, help="that /answer asks, and the overload")
    p.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--part", choices=["search", "answer", "overload"], action="append")
    args = p.parse_args()
    if args.bare:
        return serve_nothing()
    parts = args.part or ["search", "answer", "overload"]
    texts = distinct_texts()
    if "search" in parts:
        for index in args.index or INDEXES:
            print(json.dumps(closed_loop("/search", args, texts, index)), flush=True)
    if "answer" in parts:
        print(json.dumps(closed_loop("/answer", args, texts, args.entry)), flush=True)
    if "overload" in parts:
        print(json.dumps(overload(args, texts)), flush=True)


def distinct_texts() -> list[str]:
    """Questions that nobody has asked before, as many as a run may need."""
    known = pick_questions(read_table(CORPUS, "queries"), "train", None)
    first = [q.text for q in known]
    return first + [f"{text} ({n})" for n in range(1, 500) for text in first]


def body_of(path: str, text: str, name: str) -> dict[str, Any]:
    """The request for a text: to an index or to an entry."""
    if path == "/search":
        return {"query": text, "k": K, "index": name}
    return {"question": text, "entry": name, "max_tokens": TOKENS}


# -- the service ------------------------------------------------------------------------------


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a service that is ready."""
    with process("-m", "stages.serve", "http", "--port", "0", *options) as (url, pid):
        yield url, pid


@contextmanager
def process(*argv: str) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a Python process that prints its address and answers /readyz."""
    argv = [sys.executable, *argv]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            url = process.stdout.readline().split()[1].decode()
            while not is_ready(url):
                time.sleep(0.2)
            yield url, process.pid
        finally:
            process.terminate()


def serve_nothing() -> None:
    """What ``floor`` calls bare."""
    import uvicorn

    from stages.serve.http.command import listen
    from stages.serve.http.wire import Http

    head = [(b"content-type", b"application/json"), (b"content-length", b"2")]

    async def nothing(scope, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"{}"})

    sock = listen("127.0.0.1", 0)
    print(f"bare: http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        nothing, http=Http, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[sock])


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far: what else runs on the machine is not in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(url: str, path: str, bodies: list[tuple[str, dict]], clients: int, seconds: float, out):
    """The clients' process: closed loops over one list of bodies; what was told goes to ``out``."""
    lock, todo, told = threading.Lock(), itertools.cycle(bodies), []
    deadline = time.monotonic() + seconds

    def one_client() -> None:
        with httpx.Client(base_url=url, timeout=300) as client, Wire(url) as wire:
            while time.monotonic() < deadline:
                with lock:
                    text, body = next(todo)
                start = time.monotonic()
                try:
                    status = listen(client, body) if path == "/answer" else wire.send(path, body)
                except (httpx.HTTPError, OSError):
                    status = 0
                told.append(Told(text, start, time.monotonic(), status))
                if status == 429:
                    time.sleep(0.05)  # a client that may not come back at once

    threads = [threading.Thread(target=one_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.send(told)


class Wire:
    """A connection that is kept; as little work for a request as can be."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((self._host, int(port)), timeout=300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, path: str, body: dict | None) -> int:
        """The status of a POST, or of a GET if there is no body; the answer is read whole."""
        raw = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + raw)
        said = self._receive()
        while (end := said.find(b"\r\n\r\n")) < 0:
            said += self._receive()
        lines = said[:end].lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        left = length - (len(said) - end - 4)
        while left > 0:
            left -= len(self._receive())
        return int(said[9:12])

    def _receive(self) -> bytes:
        if not (part := self._socket.recv(2**18)):
            raise ConnectionError("the server closed the connection")
        return part

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def listen(client: httpx.Client, body: dict) -> int:
    """The status of an answer; of a stream that ends without ``done``, 0."""
    with client.stream("POST", "/answer", json=body) as response:
        last = ""
        for line in response.iter_lines():
            last = line.removeprefix("event: ") if line.startswith("event: ") else last
        return response.status_code if response.status_code != 200 or last == "done" else 0


def clients_process(url: str, path: str, bodies: list, clients: int, seconds: float) -> list[Told]:
    """What a process of clients was told."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(url, path, bodies, clients, seconds, theirs))
    process.start()
    told = ours.recv()
    process.join()
    return told


def closed_loop(path: str, args: argparse.Namespace, texts: list[str], name: str) -> dict[str, Any]:
    """One part's line; ``name`` is of an index or of an entry."""
    bodies = [(text, body_of(path, text, name)) for text in texts[8:]]
    memory: list[float] = []
    entry = entry_of(name) if path == "/search" else name
    with server("--entry", entry) as (url, pid):
        warm = [(text, body_of(path, text, name)) for text in texts[:8]]
        clients_process(url, path, warm * 100, 2, 1.0)  # first requests load code and memory
        second = min(AT_SECOND, args.seconds / 2)
        timer = threading.Timer(second, lambda: memory.append(resident_mib(pid)))
        timer.start()
        before = cpu_seconds(pid)
        told = clients_process(url, path, bodies, args.clients, args.seconds)
        cpu = cpu_seconds(pid) - before
        timer.join()
        memory.append(resident_mib(pid))
        ahead = fetched_ahead(url)
        floor = {}
        if path == "/search":
            short = min(5.0, args.seconds / 3)
            with process(__file__, "--bare") as (bare, _):
                floor["bare"] = empty_rate(bare, path, bodies, args.clients, short)
            asked = [("", None)] * len(bodies)
            floor["route"] = empty_rate(url, "/healthz", asked, args.clients, short)
    good = [t for t in told if t.status == 200]
    took = max(t.end for t in told) - min(t.start for t in told)
    ours = len(good) / took
    # Not in the main thread: on busy cores OpenMP's threads wait for each other there, spinning.
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(batch_rate, path, [t.text for t in good], entry, args.clients)
        theirs, their_cpu = work.result()
    if floor:
        floor["bound"] = round(1 / (1 + theirs / floor["bare"]), 3)
    return {
        "benchmark": f"serve: {path} {name}, {args.clients} clients, {args.seconds:g} s",
        "unit": "requests/s", "ours": round(ours, 2),
        "peer": f"the batch engine, {args.clients} questions open", "theirs": round(theirs, 2),
        "ratio": round(ours / theirs, 3), "aim": 0.95, **({"floor": floor} if floor else {}),
        **({"ahead": ahead} if ahead else {}),
        **counted(told), **percentiles(good),
        "cpu_ms": [round(1000 * s / len(good), 2) for s in (cpu, their_cpu)],
        "rss_mib": [round(m, 1) for m in memory],
        "rss_growth": round(memory[-1] / memory[0] - 1, 4),
    }  # fmt: skip


def fetched_ahead(url: str) -> dict[str, float]:
    """Counts of the indexes that fetch ahead, from /metrics; none: there is no such index."""
    wanted = ("hits", "misses", "copied_bytes", "missed_bytes", "budget_bytes")
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    samples = [s for f in families for s in f.samples if s.name == "quarry_prefetch"]
    return {s.labels["what"]: s.value for s in samples if s.labels["what"] in wanted}


def empty_rate(url: str, path: str, bodies: list, clients: int, seconds: float) -> float:
    """Requests a second that do nothing."""
    told = clients_process(url, path, bodies, clients, seconds)
    assert all(t.status == 200 for t in told)
    return round(len(told) / (max(t.end for t in told) - min(t.start for t in told)), 1)


def counted(told: list[Told]) -> dict[str, int]:
    """Requests by how they ended."""
    rejected = sum(t.status == 429 for t in told)
    completed = sum(t.status == 200 for t in told)
    return {
        "offered": len(told), "completed": completed, "rejected": rejected,
        "failed": len(told) - completed - rejected,
    }  # fmt: skip


def percentiles(told: list[Told]) -> dict[str, float]:
    """Milliseconds from request to end."""
    ms = [1000 * (t.end - t.start) for t in told]
    cuts = statistics.quantiles(ms, n=100, method="inclusive") if len(ms) > 1 else ms * 99
    return {f"p{n}_ms": round(cuts[n - 1], 2) for n in (50, 95, 99)}


def overload(args: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """Four times as many clients as places: who is rejected, and when it has recovered."""
    bodies = [(text, body_of("/answer", text, args.entry)) for text in texts]
    seconds = min(args.seconds, 20.0)
    with server("--entry", args.entry, "--answers", str(args.clients)) as (url, _):
        told = clients_process(url, "/answer", bodies, OVER * args.clients, seconds)
        end = time.monotonic()
        with httpx.Client(base_url=url, timeout=300) as client:
            while listen(client, bodies[0][1]) != 200:
                time.sleep(0.05)
        recovered = time.monotonic() - end
    server_errors = sum(t.status >= 500 for t in told)
    return {
        "benchmark": f"serve: overload, {OVER * args.clients} clients, {args.clients} places",
        **counted(told), "server_errors": server_errors, "recovered_s": round(recovered, 2),
        **percentiles([t for t in told if t.status == 200]),
    }  # fmt: skip


# -- the batch engine -------------------------------------------------------------------------


def entry_of(index: str) -> str:
    """The first entry of ``serve`` over this index."""
    found = [name for name, v in params.entries("serve").items() if v["index"] == index]
    if not found:
        sys.exit(f"no entry of 'serve' in params.yaml searches the index '{index}'")
    return found[0]


def batch_rate(path: str, texts: list[str], name: str, clients: int) -> tuple[float, float]:
    """Questions a second of ``run_loop`` on these texts, and CPU seconds of all."""
    entry, task = read_entries([name])[name], Task("serve", name, False)
    values = entry.values
    corpus = read_table(Path("data/ingest") / values.corpus, "passages")
    if path == "/search":
        tools = open_tools(task, values.model_copy(update={"model": "none"}))
        strategy = search_k
    else:
        values = values.model_copy(update={"max_tokens": TOKENS})
        tools = open_tools(task, values)
        library = Library(corpus, tools.generator.count_tokens)
        strategy = partial(entry.method.strategy, params=values, library=library)
    if values.ahead:
        strategy = as_requests(strategy, tools.retriever)
    run_loop(strategy, [Question("warm", "warm")], tools, trace=False)
    questions = [Question(str(i), text) for i, text in enumerate(texts)]
    start, before = time.perf_counter(), time.process_time()
    run_loop(strategy, questions, tools, max_active=clients, trace=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    if values.ahead:
        tools.retriever.close()
    return len(questions) / seconds, cpu


def search_k(question: Question) -> Steps:
    """What /search does, as a strategy."""
    return Outcome(hits=(yield Search(question.text, K)))


if __name__ == "__main__":
    main()
