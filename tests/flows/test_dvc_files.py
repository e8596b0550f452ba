"""The lock file that the flows write is the one that DVC writes, and never half of one."""

import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from diamond import DIAMOND
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
from hypothesis import example, given
from hypothesis import strategies as st

from flows import dvc
from flows.dvc_files import with_stages

letters = st.characters(categories=["L", "N", "P", "S"]) | st.sampled_from(" \n")
scalars = (
    st.text(letters, max_size=30)
    | st.booleans()
    | st.integers()
    | st.sampled_from([0.1, 1e-4, 60.0])
)
stages = st.dictionaries(
    st.text("ab@-: #'?!é0", min_size=1, max_size=12),
    st.fixed_dictionaries(
        {"cmd": st.text(letters, max_size=200)},
        optional={
            "deps": st.lists(st.dictionaries(st.just("path"), scalars), max_size=3),
            "params": st.dictionaries(st.text(letters, max_size=5), st.lists(scalars), max_size=2),
        },
    ),
    max_size=4,
)  # fmt: skip


def as_dvc(text: str, changes: dict) -> str:
    """What DVC's own ``Lockfile.dump_stages`` makes of the text: all of it parsed and written."""
    data = parse_yaml_for_update(text, "dvc.lock") or {"schema": "2.0"}
    data["stages"] = data.get("stages", {})
    data["stages"].update(changes)
    return dumps_yaml(data)


@given(stages.filter(bool), stages)
@example({"off": {"cmd": "a\n\nb"}}, {"a" * 200: {"cmd": "x"}})
@example({"a": {"cmd": "x"}}, {"a": {"cmd": "y: #"}, "yes": {"cmd": "off"}})
def test_a_changed_lock_file_is_what_dvc_makes_of_it_or_left_to_dvc(before, changes):
    text = as_dvc("", before)
    after = with_stages(text, changes)
    assert after in (None, as_dvc(text, changes))


@given(stages.filter(bool))
def test_a_first_lock_file_is_what_dvc_writes(changes):
    assert with_stages("", changes) == as_dvc("", changes)


def test_the_usual_lock_file_is_not_left_to_dvc():
    text = (Path(__file__).parents[2] / "dvc.lock").read_text(encoding="utf-8")
    old = parse_yaml_for_update(text, "dvc.lock")["stages"]["fuse@rrf-mine"]
    changes = {"fuse@rrf-mine": {**old, "cmd": "other"}, "fuse@new": deepcopy(old)}
    assert with_stages(text, changes) == as_dvc(text, changes) != text


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nschema: '2.0'\nstages:\n  a:\n    cmd: x\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\n# mine\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\ndatasets:\n- name: b\n",
        "schema: '2.0'\nstages: {}\n",
        "<<<<<<< ours\n",
    ],
)
def test_what_somebody_else_wrote_is_left_to_dvc(text):
    assert with_stages(text, {"b": {"cmd": "y"}}) is None


def test_flows_and_plain_dvc_write_the_same_lock_file(project):
    project.write(step=DIAMOND)
    for name in dvc.graph():
        dvc.repro(name, on_line=lambda line: None)
    first = Path("dvc.lock").read_bytes()
    Path("dvc.lock").unlink()
    project.repro()
    assert sorted(project.calls()) == [f"step@{name}" for name in "abcd"]  # once: DVC's run cache
    assert Path("dvc.lock").read_bytes() == first

    project.write(step={**DIAMOND, "b": {"reads": "a", "text": "other"}})
    for name in ("step@b", "step@d"):
        dvc.repro(name, on_line=lambda line: None)
    second = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(first)
    project.repro()
    assert Path("dvc.lock").read_bytes() == second != first


def test_a_lock_file_with_a_comment_keeps_it(project):
    project.write(step=DIAMOND)
    project.repro()
    Path("dvc.lock").write_text("# mine\n" + Path("dvc.lock").read_text())
    project.write(step={**DIAMOND, "b": {"reads": "a", "text": "other"}})
    for name in ("step@b", "step@d"):
        dvc.repro(name, on_line=lambda line: None)
    assert Path("dvc.lock").read_text().startswith("# mine\n") and dvc.status() == {}
    assert project.text("d") == "A other A C D"


# The command of a stage, killed when the new lock file is written and not yet in its place.
DIES_BEFORE_THE_RENAME = """
import os, pathlib, runpy, signal, sys
pathlib.Path.replace = lambda self, to: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_flow_s_dvc_killed_while_it_writes_the_lock_file_leaves_the_old_one_whole(project):
    project.write(step=DIAMOND)
    project.repro()
    project.calls()
    before = Path("dvc.lock").read_bytes()
    project.write(step={**DIAMOND, "d": {"reads": "b", "also": "c", "text": "new"}})
    argv = [sys.executable, "-P", "-c", DIES_BEFORE_THE_RENAME, *dvc.command("step@d")[2:]]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert subprocess.run(argv, env=env, capture_output=True).returncode == -signal.SIGKILL
    assert Path("dvc.lock").read_bytes() == before and project.calls() == ["step@d"]
    assert dvc.repro("step@d", on_line=lambda line: None) == "Restored"
    assert project.calls() == [] and project.text("d") == "A B A C new"
