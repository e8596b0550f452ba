"""A source is mirrored whole or not at all, and what was not read is not deleted."""

import os
import shutil
from pathlib import Path

import pytest

from flows import sources
from flows.sources import (
    Refreshed,
    find_sources,
    reach_outside,
    refresh,
    sources_digest,
)
from stages.errors import QuarryError


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("amber")
    (folder / "sub/b.md").write_text("birch")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def test_new_edited_and_deleted_files_are_mirrored_and_the_rest_is_not_read(
    drop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    assert refresh(drop, mirror) == Refreshed(copied=2, removed=0, same=0)
    assert texts(mirror) == texts(drop)
    (drop / "a.md").write_text("Amber")
    (drop / "sub/b.md").unlink()
    (drop / "sub/c.md").write_text("cedar")
    assert refresh(drop, mirror) == Refreshed(copied=2, removed=1, same=0)
    assert texts(mirror) == {"a.md": "Amber", "sub/c.md": "cedar"}
    monkeypatch.setattr(sources.shutil, "copy2", lambda *a: pytest.fail("it was read again"))
    assert refresh(drop, mirror) == Refreshed(copied=0, removed=0, same=2)


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("{}")
    refresh(tmp_path / "docs.jsonl", tmp_path / "in/docs.jsonl")
    assert (tmp_path / "in/docs.jsonl").read_text() == "{}"


def test_a_file_takes_the_place_of_a_folder_and_a_folder_that_of_a_file(
    drop: Path, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    refresh(drop, mirror)
    shutil.rmtree(drop / "sub")
    (drop / "sub").write_text("one file now")
    (drop / "a.md").unlink()
    (drop / "a.md").mkdir()
    (drop / "a.md/deep.md").write_text("in a folder now")
    assert refresh(drop, mirror) == Refreshed(copied=2, removed=2, same=0)
    assert texts(mirror) == texts(drop)

    shutil.rmtree(drop)
    drop.write_text("the whole source is a file")
    assert refresh(drop, mirror) == Refreshed(copied=1, removed=2, same=0)
    assert mirror.read_text() == "the whole source is a file"
    drop.unlink()
    drop.mkdir()
    (drop / "b.md").write_text("and a folder again")
    assert refresh(drop, mirror) == Refreshed(copied=1, removed=1, same=0)
    assert texts(mirror) == {"b.md": "and a folder again"}


@pytest.mark.parametrize("kind", ["file", "folder", "itself"])
def test_what_a_link_in_the_mirrors_place_leads_to_is_never_touched(
    drop: Path, tmp_path: Path, kind: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "mine.md").write_text("mine")
    (tmp_path / "one.md").write_text("one")
    mirror = tmp_path / "mirror"
    mirror.symlink_to(precious)
    refresh({"file": tmp_path / "one.md", "folder": drop, "itself": precious}[kind], mirror)
    assert texts(precious) == {"mine.md": "mine"}
    assert mirror.is_symlink() is (kind == "itself")


@pytest.mark.parametrize("at", ["in/mine", "in/deep/mine"])
def test_a_link_on_the_way_to_the_mirror_is_refused_and_nothing_behind_it_is_touched(
    drop: Path, tmp_path: Path, at: str
) -> None:
    precious, root = tmp_path / "precious", tmp_path / "real/tree"
    (precious / "mine").mkdir(parents=True)
    (precious / "mine/a.md").write_text("mine")
    mirror = root / at
    mirror.parent.parent.mkdir(parents=True)
    mirror.parent.symlink_to(precious)
    with pytest.raises(QuarryError, match=f"behind the link {mirror.parent}"):
        refresh(drop, mirror, root=root)
    assert texts(precious) == {"mine/a.md": "mine"}
    assert refresh(precious / "mine", mirror, root=root) == Refreshed(0, 0, 1), "read in place"


def test_links_above_the_root_are_the_users_own(drop: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = tmp_path / "link/tree"
    assert refresh(drop, root / "in/mine", root=root).copied == 2
    assert texts(tmp_path / "real/tree/in/mine") == texts(drop)


def test_a_source_that_is_not_there_is_no_deletion(drop: Path, tmp_path: Path) -> None:
    refresh(drop, tmp_path / "mirror")
    before = texts(tmp_path / "mirror")
    drop.rename(tmp_path / "unmounted")
    with pytest.raises(QuarryError, match="is not there"):
        refresh(drop, tmp_path / "mirror")
    assert texts(tmp_path / "mirror") == before


def test_a_read_that_fails_in_the_middle_changes_nothing(
    drop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    refresh(drop, mirror)
    before = texts(mirror)
    (drop / "a.md").unlink()
    for name in ("sub/b.md", "z.md"):
        (drop / name).write_text("other")
    real = sources.shutil.copy2

    def fails(path, to):
        if path.name == "z.md":
            raise OSError(5, "Input/output error")
        return real(path, to)

    monkeypatch.setattr(sources.shutil, "copy2", fails)
    with pytest.raises(QuarryError, match="Input/output error"):
        refresh(drop, mirror)
    assert texts(mirror) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize("ends", [True, False])
def test_a_file_that_is_being_written_is_waited_for_and_never_taken_in_halves(
    drop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    mirror, real, writes = tmp_path / "mirror", sources.shutil.copy2, []

    def while_written(path, to):
        done = real(path, to)
        if path.name == "a.md" and (len(writes) < 1 or not ends):
            writes.append(path.write_text("amber" * (len(writes) + 2)))
        return done

    monkeypatch.setattr(sources, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(sources.shutil, "copy2", while_written)
    if ends:
        refresh(drop, mirror)
        assert (mirror / "a.md").read_text() == "amber" * 2
    else:
        with pytest.raises(QuarryError, match="changes while it is read"):
            refresh(drop, mirror)
        assert not mirror.exists() and len(writes) == sources.TRIES


def test_links_are_not_followed(drop: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    os.symlink(tmp_path / "secret", drop / "link.md")
    refresh(drop, tmp_path / "mirror")
    assert set(texts(tmp_path / "mirror")) == {"a.md", "sub/b.md"}


def test_sources_are_the_paths_of_ingest_and_a_drop_folder_takes_a_paths_place() -> None:
    root = Path("/project")
    entries = {
        "mine": {"path": "examples/mine"}, "package": {"path": "data/none"},
        "outside": {"path": "/corpora/x"},
    }  # fmt: skip
    assert find_sources(root, entries, {}) == {"examples/mine": root / "examples/mine"}
    dropped = find_sources(root, entries, {"mine": "inbox"})
    assert dropped == {"examples/mine": root / "inbox"}
    with pytest.raises(QuarryError, match="no such entry of ingest"):
        find_sources(root, entries, {"mien": "inbox"})
    with pytest.raises(QuarryError, match="not inside the project"):
        find_sources(root, entries, {"outside": "inbox"})


def test_the_digest_sees_names_and_bytes_and_not_times(drop: Path) -> None:
    before = sources_digest([drop])
    os.utime(drop / "a.md", (1, 1))
    assert sources_digest([drop]) == before
    (drop / "a.md").rename(drop / "z.md")
    assert sources_digest([drop]) != before


def test_a_path_beside_the_checkout_leads_to_the_same_place_from_the_worktree(tmp_path) -> None:
    root, there = tmp_path / "project", tmp_path / "corpora/mine"
    worktree = root / ".quarry/worktree"
    worktree.mkdir(parents=True)
    there.mkdir(parents=True)
    (there / "a.txt").write_text("here")
    paths = {"mine": "../corpora/mine", "one": "../corpora/mine/a.txt", "all": "../corpora"}
    entries = {"own": {"path": "notes"}, "none": {}} | {n: {"path": p} for n, p in paths.items()}
    for _ in range(2):
        reach_outside(root, worktree, entries)
        assert (worktree / "../corpora/mine/a.txt").read_text() == "here"
    assert (there / "a.txt").is_file() and not (there / "a.txt").is_symlink(), "only a link is made"
    for far in ("../../corpora", "..", "../worktree/x"):
        with pytest.raises(QuarryError, match=r"ingest\.far\.path.*absolute"):
            reach_outside(root, worktree, {"far": {"path": far}})
