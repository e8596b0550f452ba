"""The block of the latency studies: what it reads, where it writes, and that nobody reads that."""

from pathlib import Path

import pytest
from test_graph import GRAPH, PARAMS, ROOMS, ROOT, STUDIES, closure, resolved

from stages.params import load
from stages.serve.measure import Params

BLOCK = STUDIES["latency"]["do"]
ENTRIES = PARAMS["studies"]["latency"]


def written(block: dict) -> list[str]:
    return [next(iter(out)) for out in block["outs"]]


@pytest.mark.parametrize("key", ENTRIES)
def test_every_import_is_a_declared_dep_and_no_other_is_declared(key: str) -> None:
    deps = resolved(BLOCK["deps"], ENTRIES[key], key)
    method = ROOT / "stages/serve/strategies" / f"{ENTRIES[key]['strategy']}.py"
    needed = closure(ROOT / "stages/serve/measure.py", method)
    declared = {d for d in deps if d.startswith("stages/")}
    assert method.exists()
    assert declared == needed, f"{sorted(needed - declared)} / {sorted(declared - needed)}"
    assert "versions/serve.txt" in deps


@pytest.mark.parametrize("key", ENTRIES)
def test_every_entry_loads_and_names_a_run_and_an_index_of_the_studies(key: str) -> None:
    values = load(Params, "latency", key, study=True, path=ROOT / "params.yaml")
    corpus, _, run = values.run.partition("/")
    recorded = PARAMS["studies"]["serve"][run]
    assert (recorded["corpus"], recorded["strategy"]) == (corpus, values.strategy)
    assert (recorded["corpus"], recorded["model"]) == (values.corpus, values.model)
    index = PARAMS["studies"]["index"][values.index]
    assert (index["kind"], index["corpus"], index["model"]) == (
        "clustered", values.corpus, values.encoder,
    )  # fmt: skip
    assert values.questions + values.calibrate <= recorded["questions"]


def test_the_six_pipelines_and_the_five_questions_of_the_card_have_entries() -> None:
    loaded = [load(Params, "latency", k, study=True, path=ROOT / "params.yaml") for k in ENTRIES]
    assert {v.strategy for v in loaded} == {
        "hyde", "subquestions", "iterative", "iter_retgen", "flare", "self_rag",
    }  # fmt: skip
    for name in ("nprobe", "batch", "order", "budget_mib"):
        assert any(len(getattr(v, name)) > 1 for v in loaded), name
    assert any(set(v.systems) == {"none", "gradual", "all", "once", "runtime"} for v in loaded)
    assert all(v.disk_mib_s for v in loaded), "a throttled disk: figures that can be repeated"


def test_measurements_lie_apart_are_not_cached_and_git_ignores_them() -> None:
    for out in BLOCK["outs"]:
        ((path, how),) = out.items()
        assert path.startswith("measured/latency/${key}/")
        assert how["cache"] is False
    assert "/measured/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_no_stage_reads_what_was_measured() -> None:
    blocks = [GRAPH[room]["do"] for room in ROOMS] + [block["do"] for block in STUDIES.values()]
    for block in blocks:
        assert not [dep for dep in block["deps"] if "measured" in dep]
    outs = {Path(path).name for path in written(BLOCK)}
    assert outs == {
        "metrics.json", "budget.json", "serve_log.parquet", "latency.json", "hit_rate.json",
    }  # fmt: skip
