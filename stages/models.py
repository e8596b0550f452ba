"""Model directories: where they come from, what they are, and their fingerprint.

A model directory holds ``config.json``, ``*.safetensors``, a tokenizer and ``training.json``
(its role, what made it, its fingerprint). A remote generator is a directory with
``endpoint.json`` instead of weights. Nothing here is pickled.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

from stages.digest import folder_digest
from stages.errors import QuarryError

ModelRole = Literal["generator", "dense", "sparse", "judge", "value"]
TRAINING = "training.json"


def package_path(spec: str) -> Path:
    """``name/inner/path`` inside an installed package, found without importing it."""
    name, _, inner = spec.partition("/")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise QuarryError(
            f"package '{name}' is not installed. "
            f"Run: make setup (it installs requirements-models.txt)."
        )
    path = Path(found.submodule_search_locations[0]) / inner
    if not path.exists():
        raise QuarryError(f"package '{name}' has no '{inner}': looked at {path}.")
    return path


def write_training(folder: Path, role: ModelRole, **made_by: Any) -> None:
    """Seal a model directory: role, provenance, and a fingerprint over all its files."""
    fingerprint = folder_digest(folder, skip=frozenset({TRAINING}))
    made = {"role": role, "fingerprint": fingerprint, "made_by": made_by}
    (folder / TRAINING).write_text(
        json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_role(folder: Path) -> ModelRole:
    """What a model directory says that it is.

    Raises:
        QuarryError: no model directory.
    """
    return _read(folder)["role"]


def read_training(folder: Path, role: ModelRole) -> dict[str, Any]:
    """``training.json`` of a directory that must have this role.

    Raises:
        QuarryError: no such folder or file, another role, or a tokenizer or weights missing.
    """
    made = _read(folder)
    if made["role"] != role:
        raise QuarryError(
            f"{folder}: is a {made['role']} model, a {role} model is needed here. "
            f"Name another finetune entry in params.yaml."
        )
    if not (folder / "endpoint.json").exists():
        for needed in ("tokenizer.json", "*.safetensors"):
            if not list(folder.glob(needed)):
                raise QuarryError(
                    f"{folder}: model directory without {needed}. Rebuild it: dvc repro."
                )
    return made


def _read(folder: Path) -> dict[str, Any]:
    path = folder / TRAINING
    if not path.exists():
        raise QuarryError(
            f"{folder}: not a model directory (no {TRAINING}). Make it with a finetune entry."
        )
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        _ = made["role"], made["fingerprint"]
    except (ValueError, KeyError, TypeError) as e:
        raise QuarryError(
            f"{path}: not the JSON that write_training leaves ({e!r}). Rebuild it: dvc repro."
        ) from None
    return made
