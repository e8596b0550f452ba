"""One stage as a process: its outcome, its log, its end."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows import dvc, process


def repro(name, **options):
    """(outcome, lines of the log)."""
    lines: list[str] = []
    return dvc.repro(name, on_line=lines.append, **options), lines


def test_a_stage_runs_then_is_unchanged_then_comes_from_the_run_cache(project):
    project.write(step={"a": {"text": "A"}})
    outcome, lines = repro("step@a")
    assert outcome == "Completed"
    assert lines == ["Running stage 'step@a':", "> python step.py step a", "a says hello"]
    assert repro("step@a") == ("Unchanged", ["Stage 'step@a' didn't change, skipping"])

    project.write(step={"a": {"text": "other"}})
    assert repro("step@a")[0] == "Completed"
    project.write(step={"a": {"text": "A"}})
    outcome, lines = repro("step@a")
    assert outcome == "Restored"
    assert lines == ["Stage 'step@a' is cached - skipping run, checking out outputs"]
    assert project.text("a") == "A"
    assert project.calls() == ["step@a", "step@a"]
    assert repro("step@a", force=True)[0] == "Completed"


def test_a_stage_that_says_dvcs_words_itself_cannot_pass_for_another_outcome(project):
    words = "Stage 'step@a' didn't change, skipping"
    with (project.folder / "step.py").open("a") as f:
        f.write(f"print({words!r})\n")
    project.write(step={"a": {}})
    outcome, lines = repro("step@a")
    assert outcome == "Completed"
    assert words in lines


def test_a_failed_stage_tells_the_end_of_its_log_and_how_to_run_it_alone(project):
    project.write(step={"a": {"do": "fail:no more milk"}})
    with pytest.raises(dvc.StageFailed) as caught:
        repro("step@a")
    message = str(caught.value)
    assert "step@a failed with exit status 255" in message
    assert "dvc repro --single-item step@a" in message
    assert "the reason: no more milk" in message
    assert "line 49" in message and "line 0\n" not in message
    assert type(caught.value) is dvc.StageFailed, "trying again would not help"


def test_an_input_that_is_not_there_is_named_with_what_to_do(project):
    project.write(step={"a": {"reads": "absent"}})
    with pytest.raises(dvc.StageFailed) as e:
        dvc.repro("step@a")
    assert "data/absent" in str(e.value)
    assert str(e.value).endswith("Put it there, or correct the path in params.yaml.")


def test_a_held_lock_is_told_apart_from_a_failure(project):
    project.write(step={"a": {}})
    rwlock = {"write": {str(project.folder / "data/a"): {"pid": os.getpid(), "cmd": "other"}}}
    (project.folder / ".dvc/tmp/rwlock").write_text(json.dumps(rwlock))
    with pytest.raises(dvc.StageBusy, match="is busy"):
        repro("step@a")
    assert project.calls() == []
    assert "is busy" in str(dvc.status()["step@a"]), "asking is possible all the same"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("HTTPSConnectionPool: Temporary failure in name resolution", dvc.StageOffline),
        ("ConnectionError: [Errno 104] Connection reset by peer", dvc.StageOffline),
        ("KeyError: 'qid'", dvc.StageFailed),
    ],
)
def test_a_network_error_is_told_apart_from_a_failure(project, reason, kind):
    project.write(step={"a": {"do": f"fail:{reason}"}})
    with pytest.raises(dvc.StageFailed) as caught:
        repro("step@a")
    assert type(caught.value) is kind


def test_two_stages_run_at_the_same_time(project):
    project.write(step={"a": {"do": "meet:b"}, "b": {"do": "meet:a"}})
    with ThreadPoolExecutor(2) as pool:
        assert [o for o, _ in pool.map(repro, ["step@a", "step@b"])] == ["Completed", "Completed"]
    assert sorted(dvc.graph()) == ["step@a", "step@b"]
    assert dvc.status() == {}, "both are in dvc.lock"


def test_progress_bars_are_drawn_for_the_flow_and_end_as_one_line_of_the_log(project):
    project.write(step={"a": {"do": "bars"}})
    bars: list[str] = []
    _, lines = repro("step@a", on_progress=bars.append)
    assert any(bar.startswith(" 50%|") and " 2/4 " in bar for bar in bars)
    assert [line[:5] for line in lines if "%|" in line] == ["100%|"]


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_stopping_leaves_no_process_of_the_group_even_if_one_is_deaf(project, are_alive, how):
    project.write(step={"a": {"do": "hang"}})
    pids = project.folder / "calls/pids"
    stop = threading.Event()

    def line(text: str) -> None:
        if text == "a says hello":
            deadline = time.monotonic() + 10
            while not pids.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert len(are_alive(pids.read_text())) == 2
            if how == "interrupt":
                raise KeyboardInterrupt
            stop.set()

    expected = dvc.StageStopped if how == "stop" else KeyboardInterrupt
    with pytest.raises(expected):
        dvc.repro("step@a", stop=stop, on_line=line, grace=0.5)
    assert are_alive(pids.read_text()) == []
    project.write(step={"a": {}})
    assert repro("step@a")[0] == "Completed", "and its lock is gone"


def test_stages_find_this_python_first_and_the_environment_they_are_given(project):
    (project.folder / "step.py").write_text(
        "import os, sys; os.makedirs('data/a')\n"
        "print(sys.executable, os.environ['OMP_NUM_THREADS'])\n"
    )
    project.write(step={"a": {}})
    _, lines = repro("step@a", env={"OMP_NUM_THREADS": "7"})
    python, threads = lines[2].split()
    assert os.path.samefile(os.path.dirname(python), os.path.dirname(sys.executable))
    assert threads == "7"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        (b"ends with a return\r", "ends with a return"),  # what a terminal makes of \n
        (b"\r 10%|#  |\r 20%|## |", " 20%|## |"),
        (b" 90%|###|\r         \r", "         "),  # a bar that cleared itself
        (b"\x1b[31mred\x1b[0m \x1b[A", "red "),
        ("é".encode()[:1], "\ufffd"),
    ],
)
def test_a_line_is_taken_as_a_terminal_would_show_it(raw, shown):
    assert process._shown(raw) == shown


def test_the_command_line_verifies_and_help_names_it():
    argv = [sys.executable, "-m", "flows.dvc", "--help"]
    assert "verify" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
