"""The arrows of the house, read from the imports: rooms -> kernels -> contract."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["ingest", "triples", "pairs", "finetune", "index", "serve", "fuse", "evaluate"]
CONTRACT = {"tables", "types", "params"}
HEAVY = {"torch", "transformers", "faiss", "spacy", "bm25s", "sentence_transformers", "peft"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the project outside the tests."""
    files = [p for top in ("stages", "flows") for p in (ROOT / top).rglob("*.py")]
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in files
    }


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; with ``top_level`` only those run at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "stages" and parts[1] in ROOMS else None


def test_no_room_imports_another_room_but_through_the_door() -> None:
    for name, path in modules().items():
        if not (room := room_of(name)):
            continue
        for target in imports(path):
            other = room_of(target)
            door = target in {"stages.index", "stages.index.open_index"}
            assert other in {None, room} or door, f"{name} imports {target}"


def test_kernels_import_no_room_except_index_through_the_door_and_no_flow() -> None:
    for name, path in modules().items():
        if name.startswith("stages") and not room_of(name):
            for target in imports(path):
                assert room_of(target) is None, f"kernel {name} imports {target}"
                assert not target.startswith(("flows", "dvc", "prefect")), f"{name}: {target}"


def test_the_contract_imports_only_errors_and_itself() -> None:
    known = set(modules())
    for name in CONTRACT:
        used = imports(ROOT / "stages" / f"{name}.py") & known
        assert used <= {"stages.errors", *(f"stages.{c}" for c in CONTRACT)}, (name, used)


def test_stages_know_neither_dvc_nor_prefect() -> None:
    for name, path in modules().items():
        if name.startswith("stages"):
            tops = {t.split(".")[0] for t in imports(path)}
            assert not tops & {"dvc", "prefect", "flows"}, f"{name} imports {tops}"


def test_only_one_module_talks_to_dvc() -> None:
    users = {n for n, p in modules().items() if "dvc" in {t.split(".")[0] for t in imports(p)}}
    assert users <= {"flows.dvc", "flows.dvc_files"}, users


@pytest.mark.parametrize("room", ROOMS)
def test_a_shell_imports_nothing_heavy(room: str) -> None:
    """Transitively: what runs when ``python -m stages.<room> --help`` is typed."""
    known, seen = modules(), set()
    todo = [f"stages.{room}", f"stages.{room}.__main__"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        used = imports(known[name], top_level=True)
        assert not {u.split(".")[0] for u in used} & HEAVY, f"{name} imports {used}"
        todo += [u for u in used if u in known]


def ask_help(room: str) -> tuple[str, float]:
    """What ``--help`` says in a fresh interpreter, and its CPU seconds (user and system)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{room}", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("room", ROOMS)
def test_help_teaches_and_answers_at_once(room: str) -> None:
    """Under a second in every room (none imports torch for it), the best of five; CPU seconds,
    so that what else runs on the machine does not count."""
    said, seconds = ask_help(room)
    assert "entry" in said and "params.yaml" in said
    assert len(said.splitlines()) > 10, "help says what the room is for"
    took = [seconds]
    while min(took) >= 1 and len(took) < 5:
        took.append(ask_help(room)[1])
    assert min(took) < 1, f"CPU seconds: {[round(s, 2) for s in took]}"


def test_versions_files_follow_the_constraints() -> None:
    done = subprocess.run(
        [sys.executable, "tools/versions.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_nothing_here_unpickles_evaluates_or_opens_a_shell() -> None:
    for path in [p for top in ("stages", "flows", "tools") for p in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "os.system"}, path
                assert not name.startswith("pickle."), path
                assert name != "torch.load", f"{path}: weights are safetensors"
                shell = [k for k in node.keywords if k.arg == "shell"]
                assert not shell, f"{path}: argv lists only"
