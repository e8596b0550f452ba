"""A project with a tiny real model and a BM25 index, and the service over it in this process."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_worlds import RAG, SEARCH, TEXTS, Running, running, write_corpus
from language_models import tiny_lm
from rooms import run_room, write_params

from stages.serve.http.catalogue import Catalogue, read_entries


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project: corpus ``c``, index ``words``, model ``lm``, entries find, read, closed."""
    folder = tmp_path_factory.mktemp("service")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_corpus(TEXTS)
        write_params(
            index={"words": dict(kind="bm25", corpus="c", model="none", centroids="none")},
            serve={"find": SEARCH, "read": RAG, "closed": RAG | {"passages": 0},
                   "gone": SEARCH | {"index": "not-built"}},
        )  # fmt: skip
        run_room("index", "words")
        tiny_lm(Path("data/finetune/lm"), context=2048)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def service(project: Path) -> Iterator[Running]:
    """The service over the whole catalogue of the project."""
    with running(Catalogue(read_entries())) as service:
        yield service
