"""The main job as a Prefect flow: DVC's graph, a task per stage.

DVC says what changed and makes what changed; this file says when, and shows it. What the lock file
names and only the default DVC remote has is fetched first, if there is one. A stage that did
not change ends at once as ``Unchanged``, without a process. Behind an upstream that was made anew
DVC is asked again, by the stage's own ``dvc repro``: equal bytes upstream leave it ``Unchanged``
after all, the run cache may have it ``Restored``, else it runs and is ``Completed``. A failed stage
takes down what needs it and nothing else.

Two stages run at a time, one of them with torch. The flow itself keeps to that; the tag limit
``gpu`` keeps to it between flows, on a server that may have other flows: with SQLite every second
stage waits two seconds for its place (the server's own writes collide, and its client tries again).

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
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
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

from flows import dvc, experiment, process, report, ui
from flows.page import STYLE, render_html
from flows.plan import AT_ONCE, TORCH_AT_ONCE, TORCH_TAG, Plan
from stages.errors import QuarryError

# Between tries. Another DVC process may hold a stage for as long as the stage takes.
RETRY_SECONDS = {dvc.StageBusy: (2, 5, 10, *[30] * 120), dvc.StageOffline: (2, 10, 30)}
WATCH_SECONDS = 2  # between looks at whether the run was cancelled, and the server is there
GONE_SECONDS = 60  # without the server, until the flow gives up; one of its own never comes back
PROGRESS_SECONDS = 10  # between reports of a stage's progress to the server
READ_AT_ONCE = 200  # task runs; the server gives no more
RECORD_SECONDS = 30  # for the server to write down how the tasks ended

OWN_SERVER = ContextVar("OWN_SERVER", default=False)  # nobody else's flows are on it

SVG, XHTML = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"

_BAR = re.compile(r"(\d+)%\|[^|]*\|\s*(\d\S*/\S+) \[")  # tqdm's own; not DVC's, about files


def stage_environment(*, alone: bool) -> dict[str, str]:
    """One share of the cores for each stage that may run at the same time.

    An entry of the catalogue may ask for more threads. Unless the stage runs ``alone`` they sleep
    while they wait for one another, or they would spin on the core that the other stage needs;
    where they may spin, training is 1.7 times as fast.
    """
    threads = str(max(1, (os.cpu_count() or 1) // AT_ONCE))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    waits = {} if alone else {"OMP_WAIT_POLICY": "passive"}
    return dict.fromkeys(names, threads) | waits


class Terminal:
    """One bar for the flow; behind it, how far the stages are that run now."""

    def __init__(self, total: int) -> None:
        form = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} stages [{elapsed}]{postfix}"
        self._bar = tqdm(total=total, bar_format=form, disable=None, dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def progress(self, name: str, text: str) -> None:
        self._shown[name] = text
        self._draw()

    def hide(self, name: str) -> None:
        self._shown.pop(name, None)
        self._draw()

    def finished(self, name: str) -> None:
        self._bar.update()
        self.hide(name)

    def _draw(self) -> None:
        self._bar.set_postfix_str(" | ".join(f"{n} {t}" for n, t in [*self._shown.items()]))

    def close(self) -> None:
        self._bar.close()


@task(cache_policy=NO_CACHE, persist_result=False)
def make(
    name: str,
    *,
    run: bool,
    force: bool,
    alone: bool,
    stop: threading.Event,
    show: Callable[[str, str], None],
) -> State:
    """The state of one stage after making it, or ``Unchanged`` without a process."""
    if not run:
        return Completed(name=dvc.UNCHANGED, message="nothing changed")
    log = get_run_logger()
    show(name, "")
    tell = _reporter(name)

    def progress(bar: str) -> None:
        if seen := _BAR.search(bar):
            text = f"{seen[1]}% {seen[2]}"
            show(name, text)
            tell(int(seen[1]), text)

    start, tries = time.monotonic(), 0
    while True:
        try:
            outcome = dvc.repro(
                name, force=force, env=stage_environment(alone=alone), stop=stop,
                on_line=log.info, on_progress=progress,
            )  # fmt: skip
            return Completed(name=outcome, message=f"{time.monotonic() - start:.1f} s")
        except dvc.StageStopped as e:
            return Cancelled(message=str(e))
        except dvc.StageFailed as e:
            delays = RETRY_SECONDS.get(type(e), ())
            if tries == len(delays):
                return Failed(message=str(e))
            log.warning("%s\nTrying again in %d s.", e, delays[tries])
        if stop.wait(delays[tries]):
            return Cancelled(message=f"{name} was stopped between two tries")
        tries += 1


def _reporter(name: str) -> Callable[[int, str], None]:
    """A function that tells the server of a stage's progress, in the log and as an artifact."""
    log = get_run_logger()
    last, artifact = time.monotonic(), None

    def tell(percent: int, text: str) -> None:
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

    return tell


@flow(name="build", task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE + 1), persist_result=False)
def build(targets: Sequence[str] = (), force: bool = False, overrides: Sequence[str] = ()) -> State:
    """Make the targets and all they depend on; none means every default stage.

    Args:
        targets: as for ``dvc repro``: ``serve@rag-mine``, ``serve``, ``studies/dvc.yaml``.
        force: make stages that did not change, too.
        overrides: other values for this run alone, as for ``dvc exp run -S``:
            ``serve.rag-mine.k=5``. What comes out is an experiment (``dvc exp show``); the
            checkout stays as it is. It works from the last commit.
    """
    if not overrides:
        return _build(targets, force)
    try:
        with experiment.overridden(Path.cwd(), overrides) as folder:
            state = _build(targets, force)
            if not state.is_completed():
                return state
            name = experiment.keep(folder, flow_run.name, dvc.graph(targets))
    except QuarryError as e:
        return Failed(message=str(e))
    return Completed(message=f"{state.message}; dvc exp apply {name}")


def _build(targets: Sequence[str], force: bool) -> State:
    """The build in the current folder."""
    stages = dvc.graph(targets)
    log = get_run_logger()
    with contextlib.closing(Terminal(len(stages))) as terminal:
        if not force:
            _fetch(targets, terminal)
        changed = set(stages) if force else set(dvc.status(targets))
        log.info("%d stages, %d of them changed", len(stages), len(changed))
        _limit_torch()
        plan = Plan(stages, changed)
        try:
            _carry_out(plan, force, terminal)
        except (KeyboardInterrupt, TerminationSignal) as e:
            return Cancelled(message=f"{type(e).__name__}; {plan.summary()}")
    publish(stages, plan.outcomes)
    failed = [name for name, outcome in plan.outcomes.items() if outcome == "Failed"]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}; {plan.summary()}")
    return Completed(message=plan.summary())


def _fetch(targets: Sequence[str], terminal: Terminal) -> None:
    """Say what is asked of the DVC remote, how far it is, what came, and what did not."""
    log = get_run_logger()
    fetched = dvc.fetch(
        targets,
        on_start=lambda stages: log.info("asking the DVC remote for %d stages", len(stages)),
        on_progress=lambda bar: [
            terminal.progress("dvc fetch", share) for share in re.findall(r"^\s*(\d+%)", bar)
        ],
    )
    terminal.hide("dvc fetch")
    if fetched.brought:
        log.info("from the DVC remote: %s", ", ".join(fetched.brought))
    if fetched.lacking:
        log.warning(
            "not on the DVC remote, made again: %s. %s", ", ".join(fetched.lacking), fetched.said
        )


def _carry_out(plan: Plan, force: bool, terminal: Terminal) -> None:
    """Submit stages as the plan lets them start, until all have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the run was cancelled on the server. No process is left.
    """
    stop = threading.Event()
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        with _cancelled_on_server() as is_cancelled:
            while not plan.is_done():
                for stage, run in plan.start():
                    is_limited = run and not OWN_SERVER.get()
                    named = make.with_options(
                        name=stage.name, task_run_name=stage.name,
                        tags=plan.tags(stage.name) if is_limited else [],
                    )  # fmt: skip
                    futures[stage.name] = future = named.submit(
                        stage.name, run=run, force=force, alone=plan.is_alone(stage.name),
                        stop=stop, show=terminal.progress,
                        wait_for=[futures[u] for u in stage.upstream],
                    )  # fmt: skip
                    future.add_done_callback(lambda _, name=stage.name: ended.put(name))
                with contextlib.suppress(queue.Empty):
                    name = ended.get(timeout=WATCH_SECONDS)
                    futures[name].wait()
                    plan.end(name, futures[name].state.name)
                    terminal.finished(name)
                if is_cancelled():
                    raise KeyboardInterrupt
    finally:
        stop.set()
        for name, future in futures.items():
            future.wait()
            plan.end(name, future.state.name)
        _wait_until_recorded(futures.values())


@contextlib.contextmanager
def _cancelled_on_server() -> Iterator[Callable[[], bool]]:
    """A question that is put to the server every WATCH_SECONDS and answered False in between."""
    looked = time.monotonic()

    def is_cancelled() -> bool:
        nonlocal looked
        if time.monotonic() - looked < WATCH_SECONDS:
            return False
        looked = time.monotonic()
        try:
            state = client.read_flow_run(flow_run.id).state
        except httpx.HTTPError:  # a busy server is asked again
            return False
        return state.is_cancelling() or state.is_cancelled()

    with get_client(sync_client=True) as client:
        yield is_cancelled


def _wait_until_recorded(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Return when the server has written down how the tasks ended: it does so some time later.

    A server that is stopped too early leaves tasks Running for ever.
    """
    awaited = {future.task_run_id: future.state.name for future in futures}
    deadline = time.monotonic() + RECORD_SECONDS
    with get_client(sync_client=True) as client, contextlib.suppress(httpx.HTTPError):
        while awaited and time.monotonic() < deadline:
            some = TaskRunFilterId(any_=list(awaited)[:READ_AT_ONCE])
            for run in client.read_task_runs(task_run_filter=TaskRunFilter(id=some)):
                if run.state is not None and run.state.name == awaited[run.id]:
                    del awaited[run.id]
            time.sleep(0.1 if awaited else 0)
    if awaited:
        get_run_logger().warning("the server has not recorded how %d tasks ended", len(awaited))


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
        label = re.search(r'aria-label="([^";]*)', figure)
        inner = figure.replace("<svg ", f'<svg xmlns="{SVG}" ')
        image = (
            f'<svg xmlns="{SVG}" width="600" height="420"><foreignObject width="600" height="420">'
            f'<div xmlns="{XHTML}" style="font: 15px system-ui, sans-serif">'
            f"<style>{STYLE}</style>{inner}</div></foreignObject></svg>"
        )
        encoded = base64.b64encode(image.encode()).decode()
        images.append(f"![{label[1] if label else ''}](data:image/svg+xml;base64,{encoded})")
    return images


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if all is made, 1 if a stage failed, 2 if it could not start, 130 cancelled."""
    p = argparse.ArgumentParser(prog="python -m flows.build", description=build.description)
    p.add_argument("targets", nargs="*", help="stages, as for dvc repro (default: all of them)")
    p.add_argument("--force", action="store_true", help="make unchanged stages, too")
    p.add_argument(
        "-S", "--set-param", action="append", default=[], metavar="KEY=VALUE",
        help="another value for this run, which becomes an experiment (as dvc exp run -S)",
    )  # fmt: skip
    args = p.parse_args(argv)
    try:
        dvc.graph(args.targets)  # a misspelt target is told before a server is started
        with on_server(), _lines_above_the_bar():
            state = build(args.targets, args.force, args.set_param, return_state=True)
            APILogHandler().flush()
        built = experiment.PLACE if args.set_param else Path()
        if state.is_completed() or not (state.is_cancelled() or args.set_param):
            with contextlib.chdir(built):
                rows = report.leaderboard_rows(report.read_evaluations())
                page = report.PAGE.resolve()
            print(f"\n{report.leaderboard_text(rows)}\nreport: {page.as_uri()}")
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{state.name}: {state.message}")
    return 0 if state.is_completed() else 130 if state.is_cancelled() else 1


@contextlib.contextmanager
def on_server() -> Iterator[None]:
    """Flows in the block go to the server there is, or to one that ends with the block."""
    with contextlib.ExitStack() as stack:
        url = get_current_settings().api.url or ui.running()
        if url is not None and ui.is_gone(url):
            raise QuarryError(
                f"nothing answers at PREFECT_API_URL={url}. Start that server, or unset the "
                f"variable: the flow then brings a server of its own."
            )
        patience = GONE_SECONDS if url else 0
        if url is None:
            for sent in (signal.SIGTERM, signal.SIGHUP):  # or they would leave it running
                signal.signal(sent, signal.default_int_handler)
            print("starting the Prefect server ...", flush=True)
            url = stack.enter_context(ui.serving())
            stack.callback(OWN_SERVER.reset, OWN_SERVER.set(True))
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        print(f"watch it: {url.removesuffix('/api')}", flush=True)
        stack.enter_context(_ending_without(url, patience))
        yield


@contextlib.contextmanager
def _ending_without(url: str, patience: float) -> Iterator[None]:
    """End stages and this process when nothing has listened at the address for so many seconds.

    Prefect's client would try again for a minute at each of its calls, and there are many.
    """
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(WATCH_SECONDS):
            if not ui.is_gone(url):
                heard = time.monotonic()
            elif time.monotonic() - heard > patience:
                process.end_all()
                print(
                    f"quarry: the Prefect server at {url} is gone. What was made is kept: "
                    f"run the same command again.", file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(2)

    watcher = threading.Thread(target=watch, name="is the server there", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _lines_above_the_bar() -> contextlib.AbstractContextManager[None]:
    """On a terminal, log lines in the block leave the bar where it is."""
    return logging_redirect_tqdm() if sys.stderr.isatty() else contextlib.nullcontext()


if __name__ == "__main__":
    sys.exit(main())
