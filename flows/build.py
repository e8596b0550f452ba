"""The main job as a Prefect flow: DVC's graph, a task per stage.

DVC says what changed and makes what changed; this file says when, and shows it. A stage that did
not change ends at once as ``Unchanged``, without a process. Behind an upstream that was made anew
DVC is asked again, by the stage's own ``dvc repro``: equal bytes upstream leave it ``Unchanged``
after all, the run cache may have it ``Restored``, else it runs and is ``Completed``. A failed stage
takes down what needs it and nothing else.

Two stages run at a time, one of them with torch. The flow itself keeps to that; the tag limit
``gpu`` on the server keeps to it between flows.

``python -m flows.build [target ...]`` runs it on the server that ``PREFECT_API_URL`` names, on that
of ``make ui`` if it is up, else on one of its own. Ctrl-C, SIGTERM and the page's Cancel button end
the stages' whole process groups and leave the run ``Cancelled``.
"""

import argparse
import base64
import contextlib
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flows import dvc, report, ui
from flows.page import STYLE, render_html
from stages.errors import QuarryError

AT_ONCE = 2  # stages
TORCH_AT_ONCE = 1
TORCH_TAG = "gpu"
RETRY_SECONDS = (2, 10, 30, 60)  # between tries, for held locks and the network only
WATCH_SECONDS = 2  # between looks at whether the run was cancelled
PROGRESS_SECONDS = 10  # between reports of a stage's progress to the server
PAGE = 200  # task runs that the server gives at once
RECORD_SECONDS = 30  # for the server to write down how the tasks ended

SVG = "http://www.w3.org/2000/svg"

_MODEL = re.compile(r"data/(studies/)?finetune/(?!none$)")
_BAR = re.compile(r"(\d+)%\|[^|]*\|\s*(\d\S*/\S+) \[")  # tqdm's own; DVC's bars are shaped otherwise
_MADE = (dvc.COMPLETED, dvc.RESTORED)
_WELL = (*_MADE, dvc.UNCHANGED)


def needs_torch(stage: dvc.Stage) -> bool:
    """Whether the stage computes with torch: it reads or writes a model."""
    return any(_MODEL.match(path) for path in (*stage.reads, *stage.writes))


def stage_environment() -> dict[str, str]:
    """One share of the cores for each stage that may run at the same time."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // AT_ONCE))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, threads)


class Terminal:
    """One bar for the flow; behind it, how far the stages are that run now."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="stage", disable=None, dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def progress(self, name: str, text: str) -> None:
        self._shown[name] = text
        self._draw()

    def finished(self, name: str) -> None:
        self._shown.pop(name, None)
        self._bar.update()
        self._draw()

    def _draw(self) -> None:
        self._bar.set_postfix_str(" | ".join(f"{n} {t}" for n, t in [*self._shown.items()]))

    def close(self) -> None:
        self._bar.close()


@task(cache_policy=NO_CACHE, persist_result=False)
def make(
    name: str, *, run: bool, force: bool, stop: threading.Event, show: Callable[[str, str], None]
) -> State:
    """The state of one stage after making it, or ``Unchanged`` without a process."""
    if not run:
        return Completed(name=dvc.UNCHANGED, message="nothing changed")
    log = get_run_logger()
    show(name, "")
    reported = _reporter(name)

    def progress(bar: str) -> None:
        if seen := _BAR.search(bar):
            text = f"{seen[1]}% {seen[2]}"
            show(name, text)
            reported(int(seen[1]), text)

    start = time.monotonic()
    for delay in (*RETRY_SECONDS, None):
        try:
            outcome = dvc.repro(
                name, force=force, env=stage_environment(), stop=stop,
                on_line=log.info, on_progress=progress,
            )  # fmt: skip
        except dvc.StageStopped as e:
            return Cancelled(message=str(e))
        except dvc.StageBusy as e:
            if delay is None:
                return Failed(message=str(e))
            log.warning("%s\nTrying again in %d s.", e, delay)
            if stop.wait(delay):
                return Cancelled(message=f"{name} was stopped between two tries")
        except dvc.StageFailed as e:
            return Failed(message=str(e))
        else:
            return Completed(name=outcome, message=f"{time.monotonic() - start:.1f} s")
    raise AssertionError("the last try returns")


def _reporter(name: str) -> Callable[[int, str], None]:
    """A function that tells the server of a stage's progress, in the log and as an artifact."""
    log = get_run_logger()
    last, artifact = time.monotonic(), None

    def report(percent: int, text: str) -> None:
        nonlocal last, artifact
        is_end = percent == 100 and artifact is not None
        if time.monotonic() - last < PROGRESS_SECONDS and not is_end:
            return
        last = time.monotonic()
        if not is_end:  # the log gets the full bar anyway
            log.info(text)
        if artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress-{name}".lower()).strip("-")
            artifact = create_progress_artifact(percent, key=key, description=f"{name}: {text}")
        else:
            update_progress_artifact(artifact, percent, description=f"{name}: {text}")

    return report


@flow(
    name="build", task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE + 1), persist_result=False
)
def build(targets: Sequence[str] = (), force: bool = False) -> State:
    """Make the targets and all they depend on; none means every default stage.

    Args:
        targets: as for ``dvc repro``: ``serve@rag-mine``, ``serve``, ``studies/dvc.yaml``.
        force: make stages that did not change, too.
    """
    stages = dvc.graph(targets)
    changed = set(stages) if force else set(dvc.status(targets))
    log = get_run_logger()
    log.info("%d stages, %d of them changed", len(stages), len(changed))
    _limit_torch()
    outcomes: dict[str, str] = {}
    try:
        _make_all(stages, changed, force, outcomes)
    except (KeyboardInterrupt, TerminationSignal) as e:
        return Cancelled(message=f"{type(e).__name__}; {count(outcomes, len(stages))}")
    publish(stages, outcomes)
    message = count(outcomes, len(stages))
    failed = [name for name, outcome in outcomes.items() if outcome == "Failed"]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}; {message}")
    return Completed(message=message)


def count(outcomes: Mapping[str, str], total: int) -> str:
    """``34 stages: 30 Unchanged, 3 Completed, 1 not run``."""
    words = (*_WELL, "Failed", "Cancelled")
    number = {word: sum(o == word for o in outcomes.values()) for word in words}
    number["not run"] = total - sum(number.values())
    return f"{total} stages: " + ", ".join(f"{n} {word}" for word, n in number.items() if n)


def _make_all(
    stages: Mapping[str, dvc.Stage], changed: set[str], force: bool, outcomes: dict[str, str]
) -> None:
    """Submit each stage when its upstreams have ended and a place is free; fill ``outcomes``.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the run was cancelled on the server. No process is left.
    """
    stop = threading.Event()
    terminal = Terminal(len(stages))
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    futures: dict[str, PrefectFuture[Any]] = {}
    torch = {name for name, stage in stages.items() if needs_torch(stage)}
    # Torch stages wait for one place among them, so they go first when there is a choice.
    waiting = sorted(stages.values(), key=lambda stage: stage.name not in torch)
    running: set[str] = set()

    def submit(stage: dvc.Stage, run: bool) -> None:
        options = make.with_options(
            name=stage.name, task_run_name=stage.name,
            tags=[TORCH_TAG] if run and stage.name in torch else None,
        )  # fmt: skip
        futures[stage.name] = future = options.submit(
            stage.name, run=run, force=force, stop=stop, show=terminal.progress,
            wait_for=[futures[u] for u in stage.upstream],
        )  # fmt: skip
        future.add_done_callback(lambda _, name=stage.name: ended.put(name))

    try:
        for _ in _ticks_until_cancelled():
            for stage in [s for s in waiting if all(u in outcomes for u in s.upstream)]:
                blocked = any(outcomes[u] not in _WELL for u in stage.upstream)
                anew = stage.name in changed or any(outcomes[u] in _MADE for u in stage.upstream)
                run = anew and not blocked
                if run and len(running) >= AT_ONCE:
                    continue
                if run and stage.name in torch and len(running & torch) >= TORCH_AT_ONCE:
                    continue
                waiting.remove(stage)
                if run:
                    running.add(stage.name)
                submit(stage, run)
            with contextlib.suppress(queue.Empty):
                name = ended.get(timeout=WATCH_SECONDS)
                futures[name].wait()
                outcomes[name] = futures[name].state.name
                running.discard(name)
                terminal.finished(name)
            if len(outcomes) == len(stages):
                break
    finally:
        stop.set()
        for name, future in futures.items():
            future.wait()
            outcomes[name] = future.state.name
        terminal.close()
        _wait_until_recorded(futures.values())


def _wait_until_recorded(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Return when the server has written down how the tasks ended: it does so some time later.

    A server that is stopped too early leaves tasks Running for ever.
    """
    open_ones = {future.task_run_id: future.state.name for future in futures}
    deadline = time.monotonic() + RECORD_SECONDS
    with get_client(sync_client=True) as client:
        while open_ones and time.monotonic() < deadline:
            some = TaskRunFilterId(any_=list(open_ones)[:PAGE])
            for run in client.read_task_runs(task_run_filter=TaskRunFilter(id=some), limit=PAGE):
                if run.state is not None and run.state.name == open_ones[run.id]:
                    del open_ones[run.id]
            time.sleep(0.1 if open_ones else 0)
    if open_ones:
        get_run_logger().warning("the server has not recorded the end of %d tasks", len(open_ones))


def _ticks_until_cancelled() -> Iterator[None]:
    """Yield forever; raise KeyboardInterrupt when the server says that the run is cancelled."""
    with get_client(sync_client=True) as client:
        looked = time.monotonic()
        while True:
            yield
            if time.monotonic() - looked < WATCH_SECONDS:
                continue
            looked = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):  # a server that is busy is asked again
                state = client.read_flow_run(flow_run.id).state
                if state.is_cancelling() or state.is_cancelled():
                    raise KeyboardInterrupt


def _limit_torch() -> None:
    """The tag limit between flows; one that somebody has set otherwise stays."""
    with get_client(sync_client=True) as client:
        try:
            client.read_concurrency_limit_by_tag(TORCH_TAG)
        except ObjectNotFound:
            client.create_concurrency_limit(TORCH_TAG, TORCH_AT_ONCE)


def publish(stages: Mapping[str, dvc.Stage], outcomes: Mapping[str, str]) -> None:
    """Write the HTML report; show leaderboard, plots and graph in the pages of this run."""
    evaluations = report.read_evaluations()
    edges = {name: stage.upstream for name, stage in dvc.graph().items()}
    html = render_html(evaluations, edges, report.read_provenance())
    report.PAGE.parent.mkdir(parents=True, exist_ok=True)
    report.PAGE.write_text(html, encoding="utf-8")

    table = report.leaderboard_markdown(report.leaderboard_rows(evaluations))
    create_markdown_artifact(table, key="leaderboard")
    chart = dvc.mermaid(stages, outcomes)
    create_markdown_artifact(f"```mermaid\n{chart}```\n", key="graph")
    if plots := plot_images(html):
        create_markdown_artifact("\n\n".join(plots), key="plots")
    create_link_artifact(report.PAGE.resolve().as_uri(), "HTML report", key="report")


def plot_images(html: str) -> list[str]:
    """The figures of the report as Markdown images that carry their bytes with them."""
    images = []
    for figure in re.findall(r"<figure>.*?</figure>", html, re.DOTALL):
        title = re.search(r'aria-label="([^"]*)"', figure)
        inner = figure.replace("<svg ", f'<svg xmlns="{SVG}" ')
        image = (
            f'<svg xmlns="{SVG}" width="600" height="480"><foreignObject width="600" height="480">'
            f'<div xmlns="http://www.w3.org/1999/xhtml"><style>{STYLE}</style>{inner}</div>'
            "</foreignObject></svg>"
        )
        encoded = base64.b64encode(image.encode()).decode()
        images.append(f"![{title[1] if title else ''}](data:image/svg+xml;base64,{encoded})")
    return images


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if all is made, 1 if a stage failed, 2 if it could not start, 130 cancelled."""
    p = argparse.ArgumentParser(prog="python -m flows.build", description=build.description)
    p.add_argument("targets", nargs="*", help="stages, as for dvc repro (default: all of them)")
    p.add_argument("--force", action="store_true", help="make unchanged stages, too")
    args = p.parse_args(argv)
    try:
        dvc.graph(args.targets)  # a misspelt target is told before a server is started
        with contextlib.ExitStack() as stack:
            url = get_current_settings().api.url or ui.running()
            if url is None:
                print("starting the Prefect server ...", flush=True)
                url = stack.enter_context(ui.serving())
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
            print(f"watch it: {url.removesuffix('/api')}", flush=True)
            if sys.stderr.isatty():
                stack.enter_context(logging_redirect_tqdm())  # lines go above the bar
            state = build(args.targets, force=args.force, return_state=True)
            APILogHandler().flush()
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if not state.is_cancelled():
        rows = report.leaderboard_rows(report.read_evaluations())
        print(f"\n{report.leaderboard_text(rows)}\nreport: {report.PAGE.resolve().as_uri()}")
    print(f"{state.name}: {state.message}")
    return 0 if state.is_completed() else 130 if state.is_cancelled() else 1


if __name__ == "__main__":
    sys.exit(main())
