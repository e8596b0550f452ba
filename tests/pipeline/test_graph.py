"""What ``dvc.yaml`` declares is what the code reads: compared with the imports, entry by entry."""

import ast
import functools
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STUDIES = yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ROOMS = ["ingest", "triples", "pairs", "finetune", "index", "serve", "fuse", "evaluate"]


@functools.cache
def project_imports(path: Path) -> frozenset[Path]:
    """Files of the project that run when this one is imported, wherever the import stands."""
    found = {path.parent / "__init__.py"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.split(".")[0] == "stages":
                base = ROOT / Path(*name.split("."))
                found |= {base.with_suffix(".py"), base / "__init__.py"}
    # Behind the door any kind of index may be opened: by name, which no import shows.
    if ROOT / "stages/index/__init__.py" in found and path.parent.name != "index":
        found |= {f for f in (ROOT / "stages/index").glob("*.py") if f.stem != "__main__"}
    return frozenset(f for f in found if f.exists())


def closure(*roots: Path) -> set[str]:
    """All of the project's files that running these reads."""
    seen, todo = set(), list(roots)
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += project_imports(path)
    return {p.relative_to(ROOT).as_posix() for p in seen}


def resolved(deps: list[str], item: dict, key: str) -> list[str]:
    out = []
    for dep in deps:
        for name, value in item.items():
            if isinstance(value, str):
                dep = dep.replace(f"${{item.{name}}}", value)
        out.append(dep.replace("${key}", key))
    return out


def method_file(deps: list[str], room: str) -> Path:
    """The dep that the entry's method key interpolates."""
    template = next(d for d in GRAPH[room]["do"]["deps"] if d.startswith("stages/") and "${" in d)
    return ROOT / deps[GRAPH[room]["do"]["deps"].index(template)]


def written(block: dict) -> dict[str, bool]:
    """Paths of what a block writes, and whether DVC caches it."""
    outs = (out for kind in ("metrics", "outs", "plots") for out in block["do"].get(kind, []))
    named = (out if isinstance(out, dict) else {out: {}} for out in outs)
    return {path: how.get("cache", True) for out in named for path, how in out.items()}


ENTRIES = [(room, key) for room in ROOMS for key in PARAMS[room]]


def all_entries(room: str) -> dict[str, dict]:
    """Of the default catalogue and of the studies: both run with the same list of deps."""
    studies = {f"studies.{key}": item for key, item in PARAMS["studies"].get(room, {}).items()}
    return {**PARAMS[room], **studies}


def needs(room: str, deps: list[str]) -> set[str]:
    shell = ROOT / "stages" / room / "__main__.py"
    return closure(shell, method_file(deps, room))


@pytest.mark.parametrize("room", ROOMS)
def test_every_import_of_an_entry_is_a_declared_dep(room: str) -> None:
    for key, item in all_entries(room).items():
        deps = resolved(GRAPH[room]["do"]["deps"], item, key)
        missing = needs(room, deps) - set(deps)
        assert not missing, f"{room}@{key} reads {sorted(missing)}; add them to deps in dvc.yaml"


@pytest.mark.parametrize("room", ROOMS)
def test_no_declared_dep_is_read_by_no_entry(room: str) -> None:
    used, declared = set(), set()
    for key, item in all_entries(room).items():
        deps = resolved(GRAPH[room]["do"]["deps"], item, key)
        declared |= {d for d in deps if d.startswith("stages/")}
        used |= needs(room, deps)
    assert declared <= used, f"{room} declares {sorted(declared - used)} that nothing imports"


@pytest.mark.parametrize(("room", "key"), ENTRIES)
def test_every_entry_loads(room: str, key: str) -> None:
    from importlib import import_module

    from stages.params import load

    deps = resolved(GRAPH[room]["do"]["deps"], PARAMS[room][key], key)
    module = method_file(deps, room).relative_to(ROOT).with_suffix("")
    params = import_module(".".join(module.parts)).Params
    assert load(params, room, key, path=ROOT / "params.yaml").model_dump()


@pytest.mark.parametrize("catalogue", [PARAMS, PARAMS["studies"]], ids=["default", "studies"])
def test_named_runs_are_entries_over_their_corpus(catalogue: dict) -> None:
    over = {
        room: {n: e["corpus"] for n, e in catalogue[room].items()} for room in ("serve", "fuse")
    }
    for key, entry in catalogue["fuse"].items():
        assert {over["serve"][n] for n in entry["runs"]} == {entry["corpus"]}, f"fuse.{key}.runs"
    for key, entry in catalogue["evaluate"].items():
        found = {n for n, corpus in over["serve"].items() if corpus == entry["corpus"]}
        found |= {n for n, corpus in over["fuse"].items() if corpus == entry["fused"]}
        assert {*entry["runs"], entry["baseline"]} <= found, f"evaluate.{key}.runs"


@pytest.mark.parametrize("room", ROOMS)
def test_versions_of_the_room_are_a_dep(room: str) -> None:
    assert f"versions/{room}.txt" in GRAPH[room]["do"]["deps"]
    assert GRAPH[room]["do"]["params"] == [f"{room}.${{key}}"], "one entry's values, no more"


def test_studies_mirror_the_default_blocks_below_their_own_folder() -> None:
    for name, block in STUDIES.items():
        if name == "latency":  # measurements: tests/pipeline/test_latency_graph.py
            continue
        assert block["foreach"] == f"${{studies.{name}}}"
        assert block["do"]["wdir"] == ".."
        assert block["do"]["cmd"] == f"{GRAPH[name]['do']['cmd']} --study"
        below = [
            f"data/studies/{dep[5:]}" if dep.startswith("data/") else dep
            for dep in GRAPH[name]["do"]["deps"]
        ]
        assert block["do"]["deps"] == below
        below = {f"data/studies/{out[5:]}": how for out, how in written(GRAPH[name]).items()}
        assert written(block) == below


def test_studies_declare_no_metrics_and_no_plots() -> None:
    """``dvc metrics diff`` would say of each that nobody ran that it failed to load."""
    assert all({"metrics", "plots"}.isdisjoint(block["do"]) for block in STUDIES.values())


def test_no_default_stage_reads_what_a_study_writes() -> None:
    for room in ROOMS:
        for key, item in PARAMS[room].items():
            for dep in resolved(GRAPH[room]["do"]["deps"], item, key):
                assert not dep.startswith("data/studies"), f"{room}@{key} reads {dep}"


@pytest.mark.parametrize("room", ROOMS)
def test_what_dvc_exp_run_writes_reads_as_before(room: str, tmp_path: Path) -> None:
    """``-S`` writes the file anew and breaks long lines: no entry may suffer from that."""
    from dvc.utils.serialize import modify_yaml

    from stages.params import entries

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with modify_yaml(str(path)) as values:
        values["serve"]["bm25-semanlink"]["k"] = 7
    expected = {key: dict(item) for key, item in PARAMS[room].items()}
    if room == "serve":
        expected["bm25-semanlink"]["k"] = 7
    assert entries(room, path=path) == expected
