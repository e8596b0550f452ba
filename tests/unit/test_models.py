"""Model directories: sealed with a fingerprint, refused with a message that says what to do."""

import json
import sys
from pathlib import Path

import pytest

from stages.errors import QuarryError
from stages.models import package_path, read_training, write_training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete dense model directory, as far as its files go."""
    folder = tmp_path / "minilm"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(f"{{}} {name}")
    write_training(folder, "dense", recipe="pretrained", source="package:x")
    return folder


def test_a_sealed_directory_is_read_back(folder: Path) -> None:
    made = read_training(folder, "dense")
    assert made["role"] == "dense"
    assert made["made_by"] == {"recipe": "pretrained", "source": "package:x"}
    assert len(made["fingerprint"]) == 32


def test_the_fingerprint_follows_the_files_and_not_the_provenance(folder: Path) -> None:
    before = read_training(folder, "dense")["fingerprint"]
    write_training(folder, "dense", recipe="other")
    assert read_training(folder, "dense")["fingerprint"] == before
    (folder / "config.json").write_text("{} config.jsoN")
    write_training(folder, "dense", recipe="other")
    assert read_training(folder, "dense")["fingerprint"] != before


def test_another_role_is_refused(folder: Path) -> None:
    with pytest.raises(QuarryError) as e:
        read_training(folder, "generator")
    assert str(e.value) == (
        f"{folder}: is a dense model, a generator model is needed here. "
        f"Name another finetune entry in params.yaml."
    )


@pytest.mark.parametrize(
    ("missing", "named"),
    [("tokenizer.json", "tokenizer.json"), ("model.safetensors", r"\*.safetensors")],
)
def test_a_directory_without_tokenizer_or_weights_is_refused(folder, missing, named) -> None:
    (folder / missing).unlink()
    with pytest.raises(QuarryError, match=f"model directory without {named}. Rebuild it"):
        read_training(folder, "dense")


def test_an_endpoint_needs_neither_weights_nor_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "endpoint.json").write_text("{}")
    write_training(tmp_path, "generator", recipe="endpoint")
    assert read_training(tmp_path, "generator")["role"] == "generator"


def test_a_folder_that_is_no_model_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match=r"not a model directory \(no training.json\)"):
        read_training(tmp_path, "dense")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"role": "dense"})])
def test_a_broken_training_file_is_an_error_not_a_traceback(folder: Path, content: str) -> None:
    (folder / "training.json").write_text(content)
    with pytest.raises(QuarryError, match=r"training.json: not the JSON that write_training"):
        read_training(folder, "dense")


def test_a_package_folder_is_found_without_importing_it(tmp_path: Path, monkeypatch) -> None:
    inner = tmp_path / "weights_pkg" / "model"
    inner.mkdir(parents=True)
    (tmp_path / "weights_pkg" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_path("weights_pkg/model") == inner
    assert "weights_pkg" not in sys.modules
    with pytest.raises(QuarryError, match="package 'weights_pkg' has no 'nothing'"):
        package_path("weights_pkg/nothing")


def test_a_package_that_is_not_installed_says_what_to_run() -> None:
    with pytest.raises(
        QuarryError, match=r"package 'no_such_pkg' is not installed. Run: make setup"
    ):
        package_path("no_such_pkg/model")
