"""Shell of the index room: a corpus and a model in, an index directory out."""

from pathlib import Path

from stages import index, params, shell
from stages.index import KINDS, Inputs
from stages.shell import Task


def make(task: Task, folder: Path) -> dict[str, float]:
    """Fill the index directory; counts of what was indexed, encoded and reused."""
    from stages.engines import ENGINES
    from stages.index import layout
    from stages.records import RecordStore
    from stages.tables import read_table

    name = params.choose(task.room, task.entry, "kind", KINDS, study=task.study)
    kind = shell.method("stages.index", name)
    values = params.load(kind.Params, task.room, task.entry, study=task.study)
    passages = read_table(task.slot("ingest", values.corpus), "passages")
    model = task.slot("finetune", values.model)
    centroids = task.slot("index", values.centroids)
    triples = task.slot("triples", values.triples)
    with RecordStore(apply=ENGINES[values.engine]) as store:
        contents = kind.build(passages, values, Inputs(store, model, centroids, triples))
        reused = store.hits
    layout.write_index(folder, name, contents)
    return {**contents.facts, "reused": reused}


if __name__ == "__main__":
    shell.run("index", index.__doc__, make)
