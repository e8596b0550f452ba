"""Run one strategy over the questions of a corpus; an entry of 'serve' in params.yaml says how."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from stages import params, serve, shell
from stages.effects import Question, Steps
from stages.errors import QuarryError
from stages.loop import NO_LIMIT, run_loop
from stages.models import read_role
from stages.records import RecordStore
from stages.serve import STRATEGIES, asked, written
from stages.shell import Task
from stages.tables import read_table, write_table
from stages.tools import Tools


def open_tools(task: Task, values: asked.Served, method: ModuleType | None = None) -> Tools:
    """What an entry's slots name; hints go where clusters are fetched.

    A strategy file with an ``equip(tools, params, scorer) -> Tools`` has the last word.
    """
    generator = retriever = prefetch = None
    index, encoder = task.slot("index", values.index), task.slot("finetune", values.encoder)
    if index and values.ahead:
        from stages.serve.prefetch.engine import open_engine

        retriever = open_engine(index, encoder, **values.ahead.settings())
        prefetch = retriever.prefetch
    elif index:
        from stages.index import open_index

        retriever = open_index(index, encoder)
    if model := task.slot("finetune", values.model):
        from stages.lm import open_generator

        generator = open_generator(model, threads=values.threads)
    tools = Tools(generator, retriever, prefetch=prefetch)
    if scorer := task.slot("finetune", values.scorer):
        tools = add_scorer(tools, scorer)
    return method.equip(tools, values, scorer) if hasattr(method, "equip") else tools


def add_scorer(tools: Tools, scorer: Path) -> Tools:
    """An aligner answers ``Encode``, a judge ``Score``; other roles are for ``equip``."""
    role = read_role(scorer)
    if role == "dense":
        from stages.encoder import open_encoder

        return tools._replace(encoder=open_encoder(scorer))
    if role == "judge":
        from stages.judge import open_judge

        return tools._replace(reranker=open_judge(scorer))
    return tools


def open_library(task: Task, values: asked.Served, tools: Tools) -> asked.Library:
    """The passages, and the triples and facts that an entry names."""
    triples, facts = task.slot("triples", values.triples), task.slot("index", values.facts)
    if facts:
        from stages.index import open_index

        facts = open_index(facts, task.slot("finetune", values.scorer))
    return asked.Library(
        read_table(task.slot("ingest", values.corpus), "passages"),
        tools.generator.count_tokens if tools.generator else None,
        triples=read_table(triples, "triples") if triples else None, facts=facts,
    )  # fmt: skip


def check_equal_runs(task: Task, values: asked.Served) -> None:
    """A run must not depend on the moment.

    Raises:
        QuarryError: the entry searches whatever is in memory.
    """
    if values.ahead and values.ahead.scope == "resident":
        raise QuarryError(
            f"{'studies.' if task.study else ''}serve.{task.entry}.ahead.scope: resident finds "
            f"what is in memory at that moment, so two runs would differ. Write probed; the "
            f"service can do it: python -m stages.serve http --entry {task.entry} --scope resident"
        )


def as_requests(strategy: Callable[[Question], Steps], engine: Any) -> Callable[[Question], Steps]:
    """The strategy; the engine is told when a question begins and ends."""

    def steps(question: Question) -> Steps:
        token = engine.begin()
        try:
            return (yield from strategy(question))
        finally:
            engine.end_request(token)

    return steps


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write runs.parquet, answers.parquet, effects.parquet and stats.json.

    Beside them, where clusters are fetched ahead: ``measured/serve/<entry>/serve_log.parquet``.
    """
    name = params.choose("serve", task.entry, "strategy", STRATEGIES, study=task.study)
    method = shell.method("stages.serve", name)
    values = params.load(method.Params, "serve", task.entry, study=task.study)
    check_equal_runs(task, values)
    corpus = task.slot("ingest", values.corpus)
    questions = asked.pick_questions(read_table(corpus, "queries"), values.split, values.questions)
    tools = open_tools(task, values, method)
    library = open_library(task, values, tools)
    # The first search loads its model, in no question's time; a retriever of walks has none.
    if tools.retriever and questions and not tools.search_tokens:
        tools.retriever.search([questions[0].text], 1)
    strategy = partial(method.strategy, params=values, library=library)
    how = values.model_dump(include={"max_active", "seed"})
    engine = tools.retriever if values.ahead else None
    with RecordStore() as store, ExitStack() as ends:
        if engine:
            from stages.serve.prefetch import searched

            ends.callback(engine.close)  # its thread must not live when the process ends
            strategy = as_requests(strategy, engine)
            tools = tools._replace(retriever=searched.Watched(engine))
        start = time.perf_counter()
        loop = run_loop(
            strategy, questions, tools, **how, budget=getattr(values, "budget", NO_LIMIT),
            store=store if method.TRACED else None, trace=method.TRACED,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        ahead = engine.stats() if engine else {}
    written.check_failures(loop.answered)
    write_table(written.write_run(loop.answered, values.k), folder, "runs")
    write_table(written.write_answers(loop.answered), folder, "answers")
    write_table(loop.effects, folder, "effects")
    shell.write_json(folder / "stats.json", written.count(loop))
    if engine:
        log = searched.log_table(tools.retriever.calls, engine, loop.effects)
        searched.write_log(log, measured_folder(task))
    return written.measure(loop.ticks, len(questions), seconds) | ahead


def measured_folder(task: Task) -> Path:
    """Measurements lie beside the results of stages, not among them."""
    return Path("measured") / task.folder("serve", task.entry).relative_to("data")


def run_folder(task: Task) -> Path:
    """Runs lie by corpus, so that what fuses and compares them finds them together."""
    values = params.entry_values("serve", task.entry, study=task.study)
    return task.folder("runs", str(values.get("corpus"))) / task.entry


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:  # reserved: no entry has this name (stages/serve/http)
        sys.exit(shell.method("stages.serve", "http.command").main(sys.argv[2:]))
    shell.run("serve", serve.__doc__, make, out=run_folder)
