"""Shell of the pairs room: questions, an index and a generator in, preference groups out."""

from pathlib import Path

from stages import pairs, params, shell
from stages.pairs import RECIPES, Inputs
from stages.preference import read_groups
from stages.records import RecordStore
from stages.shell import Task
from stages.tables import read_table, write_table
from stages.tools import Tools


def open_tools(task: Task, values: params.Entry) -> Tools:
    """The index and the generator that an entry names."""
    from stages.index import open_index
    from stages.lm import open_generator

    index, model = task.slot("index", values.index), task.slot("finetune", values.model)
    encoder = task.slot("finetune", values.encoder)
    return Tools(
        open_generator(model, threads=values.threads) if model else None,
        open_index(index, encoder) if index else None,
    )


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write pref_groups.parquet, pref_candidates.parquet and stats.json."""
    name = params.choose(task.room, task.entry, "recipe", RECIPES, study=task.study)
    recipe = shell.method("stages.pairs", name)
    values = params.load(recipe.Params, task.room, task.entry, study=task.study)
    corpus = task.slot("ingest", values.corpus)
    triples, run = task.slot("triples", values.triples), task.slot("runs", values.run)
    inputs = Inputs(
        *(read_table(corpus, kind) for kind in ("queries", "passages", "qrels")),
        read_table(triples, "triples") if triples else None, run,
    )  # fmt: skip
    tools = open_tools(task, values)
    with RecordStore() as store:
        built = recipe.build(values, inputs, tools, store)
    read_groups(built.groups, built.candidates)  # what training would refuse is not written
    write_table(built.groups, folder, "pref_groups")
    write_table(built.candidates, folder, "pref_candidates")
    shell.write_json(folder / "stats.json", built.stats)
    return built.facts


if __name__ == "__main__":
    shell.run("pairs", pairs.__doc__, make)
