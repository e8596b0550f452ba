"""Shell of the triples room: passages in, facts and their counts out."""

import json
from pathlib import Path

from stages import params, shell, triples
from stages.engines import ENGINES
from stages.records import RecordStore
from stages.shell import Task
from stages.tables import read_table, write_table
from stages.triples import EXTRACTORS
from stages.triples.found import count, smallest, triples_table, with_meta


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write triples.parquet, stats.json and, if a model wrote them, raw.jsonl."""
    name = params.choose(task.room, task.entry, "extractor", EXTRACTORS, study=task.study)
    extractor = shell.method("stages.triples", name)
    values = params.load(extractor.Params, task.room, task.entry, study=task.study)

    corpus = task.slot("ingest", values.corpus)
    passages = smallest(read_table(corpus, "passages"), values.limit)
    passages = with_meta(passages, read_table(corpus, "documents"))
    model = task.slot("finetune", values.model)
    with RecordStore(apply=ENGINES[values.engine]) as store:
        found = extractor.extract(passages, values, model=model, store=store)
        facts = {"reused": store.hits, "computed": store.misses}

    write_table(triples_table(passages, found), folder, "triples", shards=values.shards)
    shell.write_json(folder / "stats.json", count(found))
    raw = [
        {"docid": docid, "raw": one.raw}
        for docid, one in zip(passages["docid"].to_pylist(), found, strict=True)
        if one.raw
    ]
    if raw:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in raw)
        (folder / "raw.jsonl").write_text(lines, encoding="utf-8")
    return facts


if __name__ == "__main__":
    shell.run("triples", triples.__doc__, make)
