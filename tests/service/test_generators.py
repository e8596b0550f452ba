"""Generators that are replaced, remote ones that do not answer, prompts that are forgotten."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from http_worlds import read_events, running, wait_until
from language_models import tiny_lm

from stages.lm import LocalGenerator
from stages.models import write_training
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.generation import Desk

MODEL = Path("data/finetune/lm")


def replace(folder: Path, make) -> None:
    """The folder anew, at once, as stages do it."""
    fresh = make(folder.with_name("fresh"))
    folder.rename(folder.with_name("old"))
    fresh.rename(folder)
    shutil.rmtree(folder.with_name("old"))


def ask(service, **body) -> httpx.Response:
    question = {"question": "Where is Lyon?", "entry": "read", "max_tokens": 40, "stream": False}
    return service.post("/answer", **question | body)


def test_a_replaced_generator_answers_new_requests_and_running_ones_finish_on_the_old(
    service, monkeypatch
):
    of_old = ask(service).json()["answer"]
    old = service.catalogue.desks["lm"]
    may, step = threading.Event(), old.generator._model.step
    monkeypatch.setattr(old.generator._model, "step", lambda *a: may.wait(60) and step(*a))
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(ask, service)
        wait_until(lambda: old.running == 1, "it is written by the old one")
        replace(MODEL, lambda folder: tiny_lm(folder, context=2048, seed=8))
        wait_until(lambda: service.catalogue.rewritten["new"] == 1, "the new one is open")
        new = service.catalogue.desks["lm"]
        assert new is not old and (old.users, old.closing) == (1, False)
        of_new = ask(service).json()
        may.set()
        assert runs.result(60).json()["answer"] == of_old
    wait_until(lambda: old.closing, "the old one is closed")
    assert of_new["answer"] != of_old and ask(service).json()["answer"] == of_new["answer"]
    assert new.generator.generate([]) == [] and new.users == 0
    assert service.metric("quarry_generator_reopened", result="new") == 1


def test_a_generator_that_cannot_be_opened_leaves_the_old_one_and_a_sound_one_takes_its_place(
    service,
):
    before = ask(service).json()["answer"]
    (MODEL / "model.safetensors").rename("kept")
    wait_until(lambda: service.catalogue.rewritten["failed"] == 1, "it was tried")
    assert ask(service).json()["answer"] == before
    replace(MODEL, lambda folder: tiny_lm(folder, context=2048, seed=8))
    wait_until(lambda: service.catalogue.rewritten["new"] == 1, "it is open")
    assert ask(service).json()["answer"] != before
    assert service.catalogue.rewritten == {"new": 1, "failed": 1}


def test_prompts_are_forgotten_between_two_steps_also_when_nothing_runs(made):
    desk = Desk(LocalGenerator(made / "data/finetune/lm"))
    desk.generator.generate([])
    desk.generator._kept.append(None)
    assert desk.forget().wait(60) and desk.generator._kept == []
    desk.close()


# -- a server ---------------------------------------------------------------------------------


class Silent(ThreadingHTTPServer):
    """Takes requests for a completion and says nothing; other routes are not there."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked, self.broken = threading.Semaphore(0), threading.Semaphore(0)
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if not self.path.endswith("/completions"):
            self.send_error(404)
            return
        self.server.asked.release()
        if self.server.begins:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            part = {"choices": [{"text": "Ly", "finish_reason": None}]}
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        if not self.rfile.read(1):  # until the connection ends
            self.server.broken.release()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("begins", [False, True])
def test_a_shutdown_does_not_wait_for_a_server_that_is_silent(project, begins):
    with Silent() as server:
        server.begins = begins
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        shutil.rmtree(MODEL)
        MODEL.mkdir()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        said = {"base_url": url, "model": "m", "api_key_env": ""}
        (MODEL / "endpoint.json").write_text(json.dumps(said))
        write_training(MODEL, "generator", recipe="pretrained", source=said)
        catalogue = Catalogue(read_entries(["read"]))
        with running(catalogue, drain=0.1) as service, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(listen, service.url)
            assert server.asked.acquire(timeout=60)
            # ``running`` waits 60 s for the end of the service: its client would wait 300.
            service.server.should_exit = True
            names = asked.result(60)
        assert "done" not in names and server.broken.acquire(timeout=60)
        assert not server.asked.acquire(timeout=1), "it is not asked again"
        server.shutdown()


def listen(url: str) -> list[str]:
    """Names of the events until the service breaks off."""
    names = []
    body = {"question": "Where is Lyon?", "entry": "read"}
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            with client.stream("POST", "/answer", json=body) as response:
                names += [name for name, _ in read_events(response.iter_lines())]
        except httpx.HTTPError:
            pass
    return names
