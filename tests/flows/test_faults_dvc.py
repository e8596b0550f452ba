"""What a killed or starved DVC leaves behind, and what two flows at once may meet."""

import logging
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from diamond import DIAMOND
from fault_worlds import plumbing

from flows import dvc
from flows.build import main
from flows.worktree import git

ROOT = Path(__file__).parents[2]

# DVC, killed when it has written so many characters of dvc.lock.
DIES_WRITING = """
import io, os, signal, sys
from dvc.cli import main
from dvc.utils.serialize import _yaml

def die(data, stream, dump=_yaml._dump):
    if not stream.name.endswith("dvc.lock"):
        return dump(data, stream)
    dump(data, whole := io.StringIO())
    text = whole.getvalue()
    stream.write(text[: int(len(text) * float(sys.argv[1]))])
    stream.flush()
    os.fsync(stream.fileno())
    os.kill(os.getpid(), signal.SIGKILL)

_yaml._dump = die
main(["repro", "--single-item", sys.argv[2]])
"""


@pytest.fixture
def committed(project):
    """The diamond, made and committed; what ran is forgotten."""
    project.write(step=DIAMOND)
    project.repro()
    (project.folder / ".gitignore").write_text("/data\\n/calls\\n")
    git(project.folder, "init", "-q")
    git(project.folder, "add", "-A")
    git(project.folder, "commit", "-qm", "made")
    project.calls()
    return project


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97])
def test_a_dvc_killed_while_it_writes_its_lock_file_costs_no_stage(committed, caplog, share):
    """Nor the new one, which is in no commit: the run cache has it."""
    committed.write(step={**DIAMOND, "d": {"reads": "b", "also": "c", "text": "new"}})
    argv = [sys.executable, "-c", DIES_WRITING, str(share), "step@d"]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert subprocess.run(argv, env=env, capture_output=True).returncode == -signal.SIGKILL
    assert committed.calls() == ["step@d"]
    with caplog.at_level(logging.WARNING):
        outcomes = [dvc.repro(name, on_line=lambda line: None) for name in dvc.graph()]
    assert share or "dvc.lock was cut off" in caplog.text  # other cuts may be whole YAML
    assert set(outcomes[:3]) <= {"Unchanged", "Restored"} and outcomes[3] == "Restored"
    assert committed.calls() == [] and committed.text("d") == "A B A C new"
    assert dvc.status() == {}


def test_a_lock_file_cut_anywhere_can_be_read_and_loses_no_stage_before_the_cut(committed):
    whole = Path("dvc.lock").read_text()
    stages = yaml.safe_load(whole)["stages"]
    for at in [*range(0, len(whole), 61), len(whole) - 1]:
        Path("dvc.lock").write_text(whole[:at])
        assert list(dvc.graph()) == list(stages)
        mended = yaml.safe_load(Path("dvc.lock").read_text()).get("stages") or {}
        before = max(0, whole[:at].count("\\n  step@") - 1)
        assert list(mended.items())[:before] == list(stages.items())[:before]


def test_a_merge_conflict_in_the_lock_file_is_left_to_the_user(committed):
    lock = Path("dvc.lock")
    lock.write_text("<<<<<<< ours\\n" + lock.read_text() + ">>>>>>> theirs\\n")
    before = lock.read_bytes()
    with pytest.raises(dvc.QuarryError, match="dvc.lock"):
        dvc.graph()
    assert lock.read_bytes() == before


def test_two_flows_started_at_once_make_every_stage_once(server_process, project):
    project.write(step={name: {**step, "do": "nap:0.5"} for name, step in DIAMOND.items()})
    url, home = server_process
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": url, "PREFECT_HOME": str(home)}
    flows = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.build"], env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [flow.communicate(timeout=180)[0] for flow in flows]
    assert [flow.returncode for flow in flows] == [0, 0], said
    assert sorted(project.calls()) == ["step@a", "step@b", "step@c", "step@d"]
    assert project.text("d") == "A B A C D"
    assert dvc.status() == {}


def test_a_server_that_is_down_at_the_start_is_named_with_what_to_do(project, monkeypatch, capsys):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    project.write(step=DIAMOND)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main([]) == 2
    said = capsys.readouterr().err
    assert "nothing answers at PREFECT_API_URL=http://127.0.0.1:9/api" in said and "unset" in said
    assert project.calls() == []


# The clock of the processes that are started with it: CLOCK_REALTIME, plus the seconds that a file
# holds. Python, SQLite and Rust all ask the C library.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
  static volatile long *seconds;
  if (!seconds) {
    int f = open(getenv("CLOCK_SHIFT"), O_RDONLY);
    seconds = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, f, 0);
  }
  return *seconds;
}
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += shift();
  return r;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(the file with the shift, what makes a process go by it)."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("a process's clock is shifted by a library that this machine cannot compile")
    (tmp_path / "clock.c").write_text(CLOCK)
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    argv = ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"]
    subprocess.run(argv, check=True)
    _set(shift, 0)
    return shift, {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}


def _set(shift: Path, seconds: int) -> None:
    """In place: the file is mapped by those who read it."""
    with shift.open("r+b" if shift.exists() else "wb") as f:
        f.write(struct.pack("l", seconds))


@pytest.mark.slow
def test_a_clock_set_a_day_forward_and_back_makes_no_stage_twice(project, clock, tmp_path):
    """The flow, its own server and its stages all see it, in the middle of the first stages."""
    shift, shifted = clock
    now = [sys.executable, "-c", "import time; print(time.time())"]
    _set(shift, 86_400)
    there = subprocess.run(now, env={**os.environ, **shifted}, capture_output=True, text=True)
    assert float(there.stdout) - time.time() > 80_000, "the shift works"
    _set(shift, 0)

    project.write(step={name: {**step, "do": "nap:1"} for name, step in DIAMOND.items()})
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, **shifted, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)}
    env.pop("PREFECT_API_URL", None)
    with (tmp_path / "log").open("w") as out:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.build"], env=env, stdout=out, stderr=out
        )
        for seconds, stage in ((86_400, "a"), (-86_400, "b")):
            log = Path("calls/log")
            while flow.poll() is None and not (log.exists() and f"@{stage}" in log.read_text()):
                time.sleep(0.05)
            _set(shift, seconds)
        status = flow.wait(timeout=180)
    assert status == 0, (tmp_path / "log").read_text()[-3000:]
    assert sorted(project.calls()) == ["step@a", "step@b", "step@c", "step@d"]
    assert project.text("d") == "A B A C D" and dvc.status() == {}
    with sqlite3.connect(home / "prefect.db") as db:
        assert db.execute("SELECT state_name FROM flow_run").fetchall() == [("Completed",)]
        assert db.execute("SELECT COUNT(*) FROM task_run").fetchone() == (4,)


# In a mount namespace of its own: outputs on a disk of 64 KiB, then the same with room on it.
STARVES = """
set -e
mount -t tmpfs -o size=64k tmpfs data
mkdir -p data/ingest/none
"$0" -c "$1" 2>&1 || echo "status $?"
find data -type f | sed 's/^/left /'
mount -o remount,size=64m data
"$0" -c "$1" 2>&1
test -f data/ingest/mine/passages.parquet
"""
REPRO = """
import sys
from flows import dvc
try:
    print(dvc.repro("ingest@mine", on_line=lambda line: None))
except dvc.StageFailed as e:
    sys.exit(str(e))
"""


def test_a_full_disk_is_named_and_nothing_half_written_is_left(tmp_path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True
        ).returncode
    ):
        pytest.skip("no small disk: this machine lets nobody mount one, not even in a namespace")
    folder = plumbing(tmp_path / "world")
    argv = ["unshare", "-rm", "bash", "-c", STARVES, sys.executable, REPRO]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "status 1" in done.stdout and "\nleft data" not in done.stdout
    assert (
        f"A disk is full. Make room and run it again. Free: outputs ({folder}/data):" in done.stdout
    )
    assert done.stdout.endswith("Completed\n")
