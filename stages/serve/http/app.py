"""The routes. What they do is in service.py, who may use them in guard.py."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stages.serve.http.bodies import bodies
from stages.serve.http.catalogue import Catalogue
from stages.serve.http.direct import Direct
from stages.serve.http.events import Answer
from stages.serve.http.guard import Gate, Guard
from stages.serve.http.limits import Limits
from stages.serve.http.metrics import Metrics
from stages.serve.http.problems import MEDIA_TYPE, Problem, dumps
from stages.serve.http.reference import render_reference
from stages.serve.http.service import Service

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the folders of the indexes
PAGE = Path(__file__).parent / "page"
FILES = {"app.js": "text/javascript", "style.css": "text/css"}


def make_app(
    catalogue: Catalogue,
    limits: Limits,
    key: str | None = None,
    connections: Callable[[], int] = lambda: 0,
) -> FastAPI:
    """The service over a catalogue that it opens when it starts and closes when it ends.

    ``connections`` says how many are open; beyond ``limits.connections`` a request is refused.
    """
    metrics = Metrics(catalogue)
    service = Service(catalogue, limits, metrics)
    body = bodies(limits)
    gates = {
        "searches": Gate(limits.searches, "searches", limits, metrics),
        "answers": Gate(limits.answers, "answers", limits, metrics),
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(catalogue))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            await asyncio.to_thread(catalogue.close)

    app = FastAPI(
        title="Quarry", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Search and answers over the catalogue of params.yaml.",
    )  # fmt: skip
    app.add_middleware(
        Guard, limits=limits, key=key, metrics=metrics, connections=connections,
        direct={"/search": Direct(body.search, service.search, gates["searches"])},
    )  # fmt: skip
    _add_problems(app)
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {MEDIA_TYPE: {}}}
        for status, text in (
            (400, "Not JSON"), (401, "No or another key"), (404, "Not in the catalogue"),
            (413, "Body too large"), (422, "A value out of its limits"), (429, "Too many at once"),
            (503, "Not open"), (504, "Took too long"),
        )
    }  # fmt: skip

    @app.post("/search", responses=problems)
    async def search(asked: body.search) -> Response:
        """The k best passages of an index, each with its text and where it comes from."""
        with gates["searches"].enter():
            return Response(await service.search(asked), media_type="application/json")

    @app.post("/answer", responses={200: {"content": {"text/event-stream": {}}}, **problems})
    async def answer(asked: body.answer) -> Any:
        """An answer as server-sent events: start, begin, step, token, evidence, hint, copy,
        timings, then done or error. With ``stream`` false one JSON object at the end."""
        entry = service.entry(asked)
        return Stream(
            Answer(lambda emit: service.answer(entry, asked, emit), gates["answers"],
                   stream=asked.stream)
        )  # fmt: skip

    @app.get("/catalogue")
    async def entries() -> Response:
        """What a request can name."""
        return Response(dumps(service.describe()), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process lives."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """200 once every entry that can be opened is open; else 503 with what is missing.

        What is missing is told to those who may ask: the reasons name files."""
        waiting = {n: w for n, w in dict(catalogue.why).items() if catalogue.opening or w}
        ready = not catalogue.opening and len(waiting) < len(catalogue.entries)
        said = {"ready": ready}
        if request.scope["has_key"]:
            said["not_open"] = waiting
        return Response(dumps(said), 200 if ready else 503, media_type="application/json")

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """For Prometheus."""
        return metrics.render()

    @app.get("/docs", include_in_schema=False)
    async def reference() -> Response:
        return HTMLResponse(render_reference(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in FILES:
            raise Problem(404, "not-found", "there is no such page.")
        return Response((PAGE / name).read_bytes(), media_type=FILES[name])

    return app


class Stream(Response):
    """An ``Answer`` where FastAPI wants a response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._answer(scope, receive, send)


async def _watch(catalogue: Catalogue) -> None:
    """Open the catalogue, then reopen what is replaced, for as long as the service runs."""
    work = catalogue.open
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception:  # not of an entry: those are caught one by one
            log.exception("the catalogue could not be looked at; it is tried again")
        work = catalogue.look
        await asyncio.sleep(LOOK)


def _add_problems(app: FastAPI) -> None:
    """Whatever goes wrong has a problem body."""

    @app.exception_handler(Problem)
    async def of_ours(request: Request, problem: Problem) -> Response:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        code = {404: "not-found", 405: "method"}.get(error.status_code, "http")
        response = Problem(error.status_code, code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def of_values(request: Request, error: RequestValidationError) -> Response:
        wrong = [
            {"where": ".".join(map(str, e["loc"][1:])) or "body", "what": e["msg"]}
            for e in error.errors()[:20]
        ]
        if any(e["type"] == "json_invalid" for e in error.errors()):
            return Problem(400, "not-json", "the body is not JSON.").response()
        said = "; ".join(f"{w['where']}: {w['what']}" for w in wrong)
        return Problem(422, "values", said, errors=wrong).response()

    @app.exception_handler(Exception)
    async def of_code(request: Request, error: Exception) -> Response:
        return Problem(500, "internal", "something failed here; the log says what.").response()
