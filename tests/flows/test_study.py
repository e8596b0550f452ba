"""A study's stages: all that its evaluation names, in order, and nothing else."""

import subprocess
import sys

import pytest
import yaml

from flows import dvc, study
from flows.dvc import Stage
from stages import params

RUNS = "data/studies/runs"


def stage(name: str, *reads: str, writes: str) -> Stage:
    return Stage(name, (), reads, (writes,))


def graph(*stages: Stage) -> dict[str, Stage]:
    return {s.name: s for s in stages}


def test_runs_that_the_entry_does_not_name_are_left_out() -> None:
    stages = graph(
        stage("ingest", "raw", writes="data/c"),
        stage("a", "data/c", writes=f"{RUNS}/c/a"),
        stage("model", writes="data/m"),
        stage("b", "data/c", "data/m", writes=f"{RUNS}/c/b"),
        stage("large", "data/c", writes=f"{RUNS}/c/large"),
        stage("fuse", f"{RUNS}/c", writes="data/fused/c/f"),
        stage("evaluate", "data/c", f"{RUNS}/c", "data/fused/c", writes="metrics.json"),
    )
    whole = study.needed("evaluate", stages, {"evaluate": ["a", "f"], "fuse": ["a", "b"]})
    assert whole == ["ingest", "a", "model", "b", "fuse", "evaluate"]
    assert study.needed("evaluate", stages, {"evaluate": ["a"]}) == ["ingest", "a", "evaluate"]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return dvc.graph([study.FILE])


@pytest.fixture
def _graph_read_once(stages, monkeypatch) -> None:
    monkeypatch.setattr(study.dvc, "graph", lambda _: stages)


@pytest.mark.parametrize("name", params.entries("evaluate", study=True))
@pytest.mark.usefixtures("_graph_read_once")
def test_every_study_has_a_plan_in_which_no_stage_waits_for_a_later_one(name, stages) -> None:
    planned = study.plan(name)
    assert planned[-1] == f"{study.FILE}:evaluate@{name}" and len(set(planned)) == len(planned)
    assert ("large" in name) == any("large" in s for s in planned), "no server where none is asked"
    maker = {path: s.name for s in stages.values() for path in s.writes}
    for at, one in enumerate(planned):
        assert {maker[p] for p in stages[one].reads if p in maker} <= set(planned[:at])
    values = params.entry_values("evaluate", name, study=True)
    served = {s.partition("serve@")[2] for s in planned}
    fused = {s.partition("fuse@")[2] for s in planned}
    assert set(values["runs"]) <= served | fused


RUN = """
import sys
from pathlib import Path

name, out = sys.argv[1:]
if Path(f"broken-{name}").exists():
    sys.exit(f"{name} is broken")
with open("calls", "a") as log:
    log.write(f"{name} ")
Path(out).mkdir(parents=True)
Path(out, "text").write_text(name)
"""


def test_a_study_that_failed_goes_on_and_another_run_of_its_corpus_is_never_made(project) -> None:
    def block(room: str, dep: str, out: str) -> dict:
        cmd = f"python run.py ${{key}} {out}"
        do = {"wdir": "..", "cmd": cmd, "deps": ["run.py", dep], "outs": [out]}
        return {"foreach": f"${{studies.{room}}}", "do": do}

    rooms = {
        "serve": {key: {} for key in "abx"},
        "fuse": {},
        "evaluate": {"e": {"runs": ["a", "b"]}},
    }
    stages = {
        "serve": block("serve", "data/none", f"{RUNS}/c/${{key}}"),
        "evaluate": block("evaluate", f"{RUNS}/c", "data/studies/evaluate/${key}"),
    }
    files = {"params.yaml": {"studies": rooms}, "dvc.yaml": {"stages": {}}}
    files["studies/dvc.yaml"] = {"vars": ["../params.yaml"], "stages": stages}
    for path, what in files.items():
        (project.folder / path).write_text(yaml.safe_dump(what))
    (project.folder / "run.py").write_text(RUN)
    for broken in "xb":
        (project.folder / f"broken-{broken}").touch()

    def calls() -> str:
        made = (project.folder / "calls").read_text()
        (project.folder / "calls").write_text("")
        return made.strip()

    assert study.main(["e"]) != 0 and calls() == "a"
    (project.folder / "broken-b").unlink()
    assert study.main(["e"]) == 0 and calls() == "b e"
    assert study.main(["e"]) == 0 and calls() == ""
    assert study.main(["e", "--plan"]) == 0 and study.main(["no"]) == 2 and calls() == ""


def test_a_misspelt_study_is_told_its_near_match() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.study", "wrold"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Did you mean 'world'?" in done.stderr and not done.stdout
