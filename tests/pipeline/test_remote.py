"""A DVC remote in S3-compatible storage: pushed here, pulled by a second clone, nothing runs there.

The server is moto's, a process on loopback that speaks S3 over HTTP. The credentials are in the
environment of the tests alone.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from flows import dvc, ui

ABSENT = "the extra s3-test is not installed; make test-s3 does it"
boto3 = pytest.importorskip("boto3", reason=ABSENT)
for needed in ("dvc_s3", "flask_cors", "moto"):
    pytest.importorskip(needed, reason=ABSENT)

STEP = '''
"""What it reads, then its own text; a line in "ran" for every run."""
import sys
from pathlib import Path

name, text, *reads = sys.argv[1:]
with open("ran", "a") as log:
    log.write(name + "\\n")
out = Path("data") / name
(out / "parts").mkdir(parents=True)
texts = [Path("data", read, "text").read_text() for read in reads]
(out / "text").write_text(" ".join([*texts, text]))
for i in range(3):
    (out / "parts" / f"{i}.bin").write_bytes(bytes([i]) * 1000 + text.encode())
'''
CONFIG = """\
[core]
    analytics = false
    remote = storage
['remote "storage"']
    url = s3://{bucket}/cache
    endpointurl = {url}
"""
READS = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
MADE_UP = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "made-up-for-this-test"}
BUCKET = "quarry-test"


class Server(NamedTuple):
    """An S3 server on loopback with one bucket."""

    url: str
    s3: Any  # boto3's client

    def keys(self) -> list[str]:
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]

    @contextlib.contextmanager
    def without(self, key: str) -> Iterator[None]:
        """An object is lost for as long as the block lasts."""
        body = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        self.s3.delete_object(Bucket=BUCKET, Key=key)
        yield
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)


class Clone(NamedTuple):
    """A checkout with a cache of its own."""

    folder: Path

    def say(self, *argv: str) -> None:
        done = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)

    def dvc(self, *argv: str) -> None:
        self.say(sys.executable, "-m", "dvc", *argv)

    def sums(self) -> dict[str, str]:
        """sha256 of every output file."""
        files = sorted(p for p in (self.folder / "data").rglob("*") if p.is_file())
        return {
            p.relative_to(self.folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
        }

    def ran(self) -> list[str]:
        """The stages whose command ran here."""
        log = self.folder / "ran"
        return log.read_text().split() if log.exists() else []


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = ui.free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("s3") / "log"
    (log.parent / "aws").touch()
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as to:
        for name in [n for n in os.environ if n.startswith(("AWS_", "GIT_"))]:
            patch.delenv(name)
        here = str(Path(sys.executable).parent)
        patch.setenv("PATH", os.pathsep.join([here, os.environ["PATH"]]))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(log.parent / "aws"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name, value in MADE_UP.items():
            patch.setenv(name, value)
        process = subprocess.Popen(argv, stdout=to, stderr=to)
        try:
            deadline = time.monotonic() + 60
            while not answers(url):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            s3 = boto3.client("s3", endpoint_url=url)
            s3.create_bucket(Bucket=BUCKET)
            yield Server(url, s3)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def first(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Where everything was made, committed and pushed."""
    clone = Clone(tmp_path_factory.mktemp("first"))
    stages = {
        name: {
            "cmd": f"python step.py {' '.join([name, name.upper(), *reads])}",
            "deps": ["step.py", *(f"data/{read}" for read in reads)],
            "outs": [f"data/{name}"],
        }
        for name, reads in READS.items()
    }
    (clone.folder / "step.py").write_text(STEP)
    (clone.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (clone.folder / ".gitignore").write_text("/data\n/ran\n")
    clone.say("git", "init", "-q")
    for name in ("name", "email"):
        clone.say("git", "config", f"user.{name}", "user@example.org")
    (clone.folder / ".dvc").mkdir()
    (clone.folder / ".dvc/config").write_text(CONFIG.format(bucket=BUCKET, url=server.url))
    (clone.folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    clone.dvc("repro", "-q")
    clone.say("git", "add", "-A")
    clone.say("git", "commit", "-qm", "made")
    clone.dvc("push")
    return clone


@pytest.fixture
def second(first: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone with an empty cache, which is the working directory."""
    clone = Clone(tmp_path / "clone")
    first.say("git", "clone", "-q", first.folder.as_uri(), str(clone.folder))
    assert not (clone.folder / "data").exists()
    monkeypatch.chdir(clone.folder)
    return clone


def make_all(targets: Sequence[str] = ()) -> dict[str, str]:
    """How each stage ended, made in order as the flow makes them."""
    changed = dvc.status(targets)
    return {
        name: dvc.repro(name, on_line=lambda line: None) if name in changed else dvc.UNCHANGED
        for name in dvc.graph(targets)
    }


def test_what_is_pushed_is_the_cache_and_no_credential_is_in_any_file(
    server: Server, first: Clone
) -> None:
    """Three parts, one text and one listing for each of the four folders."""
    assert first.ran() == list("abcd")
    cached = {
        f"cache/{p.relative_to(first.folder / '.dvc/cache').as_posix()}"
        for p in (first.folder / ".dvc/cache/files").rglob("*")
        if p.is_file()
    }
    assert set(server.keys()) == cached and len(cached) == 4 * (3 + 1 + 1)
    for path in (p for p in first.folder.rglob("*") if p.is_file()):
        assert not any(secret.encode() in path.read_bytes() for secret in MADE_UP.values()), path


def test_a_second_clone_pulls_and_a_repro_there_runs_nothing(first: Clone, second: Clone) -> None:
    second.dvc("pull")
    assert second.sums() == first.sums() and len(first.sums()) == 4 * (3 + 1)
    assert make_all() == dict.fromkeys("abcd", "Unchanged")
    assert second.ran() == []


def test_what_the_flow_fetches_it_restores_and_does_not_make(first: Clone, second: Clone) -> None:
    fetched = dvc.fetch()
    assert fetched == (["data/a", "data/b", "data/c", "data/d"], [], "")
    assert second.sums() == {}, "the workspace stays as it is"
    assert make_all() == dict.fromkeys("abcd", "Restored")
    assert second.ran() == []
    assert second.sums() == first.sums()


def test_one_target_fetches_what_it_needs_and_no_more(second: Clone) -> None:
    assert dvc.fetch(["b"]) == (["data/a", "data/b"], [], "")
    cached = [p for p in (second.folder / ".dvc/cache/files").rglob("*") if p.is_file()]
    assert len(cached) == 2 * (3 + 1 + 1)


def test_an_object_that_the_remote_lost_is_named_and_its_stage_alone_runs(
    server: Server, first: Clone, second: Clone
) -> None:
    text = (first.folder / "data/c/text").read_bytes()
    md5 = hashlib.md5(text, usedforsecurity=False).hexdigest()
    with server.without(f"cache/files/md5/{md5[:2]}/{md5[2:]}"):
        brought, lacking, said = dvc.fetch(["c"])
    assert (brought, lacking) == (["data/a"], ["data/c"]) and md5 in said
    assert make_all(["c"]) == {"a": "Restored", "c": "Completed"}
    assert second.ran() == ["c"]
    assert second.sums().items() <= first.sums().items()


def test_a_remote_that_does_not_answer_is_no_reason_to_stop(second: Clone) -> None:
    config = second.folder / ".dvc/config"
    nobody = f"http://127.0.0.1:{ui.free_port()}"
    config.write_text(CONFIG.format(bucket=BUCKET, url=nobody))
    brought, lacking, said = dvc.fetch(["a"])
    assert (brought, lacking) == ([], ["data/a"])
    assert nobody in said
