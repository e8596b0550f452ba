"""Values from ``params.yaml``, validated: unknown keys and wrong types are errors.

Each method has one frozen model, a subclass of ``Entry``, in its own file; ``load`` reads one
entry into it. From there on there are only keyword arguments. The file is read as DVC reads it
(YAML 1.2: ``off`` is a word and ``1e-4`` a number), so that both see the same values.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML, YAMLError

from stages.errors import QuarryError

PARAMS = Path("params.yaml")
T = TypeVar("T", bound="Entry")


class Entry(BaseModel):
    """One named entry of the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def _near(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def entries(room: str, *, study: bool = False, path: Path = PARAMS) -> dict[str, dict[str, Any]]:
    """All entries of a room: ``params.yaml`` under the room's name (or under ``studies``)."""
    where = f"studies.{room}" if study else room
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuarryError(f"{path} is not here: run from the project's root.") from None
    except (YAMLError, UnicodeDecodeError) as e:
        raise QuarryError(f"{path}: not YAML: {e}") from None
    block = values.get("studies") if study and isinstance(values, dict) else values
    if not isinstance(block, dict) or not isinstance(block.get(room), dict):
        raise QuarryError(f"{path}: no block '{where}'. Add it, with one entry or more.")
    return block[room]


def entry_values(
    room: str, entry: str, *, study: bool = False, path: Path = PARAMS
) -> dict[str, Any]:
    """The raw values of one entry, or an error that lists the entries there are."""
    known = entries(room, study=study, path=path)
    where = f"studies.{room}" if study else room
    if entry not in known:
        raise QuarryError(
            f"{path}: no entry '{entry}' under '{where}'.{_near(entry, list(known))} "
            f"There are: {', '.join(known)}."
        )
    if not isinstance(known[entry], dict):
        raise QuarryError(f"{path}: {where}.{entry} must be a mapping of values.")
    return known[entry]


def choose(
    room: str,
    entry: str,
    key: str,
    options: dict[str, str],
    *,
    study: bool = False,
    path: Path = PARAMS,
) -> str:
    """The module that the entry names under ``key`` (its source, recipe, kind ...)."""
    values = entry_values(room, entry, study=study, path=path)
    where = f"{'studies.' if study else ''}{room}.{entry}"
    if key not in values:
        raise QuarryError(
            f"{path}: {where} has no key '{key}', one of: {', '.join(options)}. "
            f"Keys there: {', '.join(map(str, values)) or 'none'}."
        )
    name = values[key]
    if not isinstance(name, str) or name not in options:
        raise QuarryError(
            f"{path}: {where}.{key} is {name!r}.{_near(str(name), list(options))} "
            f"There are: {', '.join(options)}."
        )
    return options[name]


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys of the block at ``path`` inside an entry; those of the entry if it is no block."""
    block = model
    for key in path:
        kinds = [getattr(block.model_fields.get(str(key)), "annotation", None)]
        kinds += get_args(kinds[0])
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        block = inner[0] if inner else block
    return list(block.model_fields)


def load(model: type[T], room: str, entry: str, *, study: bool = False, path: Path = PARAMS) -> T:
    """One entry, validated.

    Raises:
        QuarryError: naming every key that is unknown, missing or of the wrong type, and what
            was expected there.
    """
    values = entry_values(room, entry, study=study, path=path)
    where = f"{'studies.' if study else ''}{room}.{entry}"
    try:
        return model.model_validate(values)
    except ValidationError as e:
        lines = []
        for err in e.errors():
            key = ".".join(str(p) for p in err["loc"])
            if err["type"] == "extra_forbidden":
                known = _known_keys(model, err["loc"][:-1])
                lines.append(
                    f"  {where}.{key}: unknown key.{_near(str(err['loc'][-1]), known)} "
                    f"Known here: {', '.join(known)}."
                )
            elif err["type"] == "missing":
                lines.append(f"  {where}.{key}: missing; add it.")
            else:
                lines.append(f"  {where}.{key}: {err['msg']}, got {err['input']!r}.")
        raise QuarryError(f"{path}: " + "\n".join(["bad values:", *lines])) from None
