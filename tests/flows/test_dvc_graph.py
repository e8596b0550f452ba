"""What DVC says about its graph and its cache."""

import os
import threading
from pathlib import Path

import pytest
import yaml
from diamond import DIAMOND
from dvc.dependency import param

from flows import dvc
from stages.errors import QuarryError


def test_the_graph_is_dvcs_own_with_upstreams_first(project):
    project.write(step=DIAMOND, study={"s": {"reads": "d"}})
    stages = dvc.graph()
    assert {name: stage.upstream for name, stage in stages.items()} == {
        "step@a": (), "step@b": ("step@a",), "step@c": ("step@a",), "step@d": ("step@b", "step@c"),
    }  # fmt: skip
    assert list(stages) == ["step@a", "step@b", "step@c", "step@d"]
    assert stages["step@b"].writes == ("data/b",)
    assert {"data/a", "data/none", "step.py"} < {*stages["step@b"].reads}


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["step@b"], ["step@a", "step@b"]),
        (["step"], ["step@a", "step@b", "step@c", "step@d"]),
        (["step@b", "step@c"], ["step@a", "step@b", "step@c"]),
        (
            ["studies/dvc.yaml"],
            ["step@a", "step@b", "step@c", "step@d", "studies/dvc.yaml:study@s"],
        ),
    ],
)
def test_targets_bring_what_they_depend_on_and_nothing_else(project, targets, names):
    project.write(step=DIAMOND, study={"s": {"reads": "d"}})
    assert list(dvc.graph(targets)) == names
    assert list(dvc.status(targets)) == names  # nothing was made yet: all of them changed


def test_a_misspelt_target_and_a_folder_without_dvc_are_named(project, tmp_path, monkeypatch):
    project.write(step=DIAMOND)
    with pytest.raises(QuarryError, match="dvc: .*step@bb"):
        dvc.graph(["step@bb"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuarryError, match="you are not inside of a DVC repository"):
        dvc.graph()


def test_dvcs_own_errors_are_told_as_ours(project):
    project.write(step={"a": {"reads": "b"}, "b": {"reads": "a"}})
    with pytest.raises(QuarryError, match="both a dependency and an output"):
        dvc.graph()


def test_a_misspelt_key_or_block_is_told_in_terms_of_params(project):
    """DVC names dvc.yaml, which the user did not write."""
    project.write(step=DIAMOND)
    written = Path("params.yaml").read_text()
    Path("params.yaml").write_text(written.replace("reads:", "raeds:", 1))
    with pytest.raises(QuarryError) as error:
        dvc.graph()
    entry = next(iter(yaml.safe_load(written)["step"]))
    said = str(error.value)
    assert said.startswith(f"params.yaml: step.{entry} has no key 'reads'. Keys there: ")
    assert "raeds" in said
    Path("params.yaml").write_text(written.replace("step:", "stpe:", 1))
    with pytest.raises(QuarryError, match=r"^params.yaml: no block 'step'. Add it, with one entry"):
        dvc.graph()


def test_dvcs_python_api_is_refused_outside_the_main_thread(project):
    project.write(step=DIAMOND)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            dvc.graph()
        except RuntimeError as e:
            errors.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "main thread only" in str(errors[0])


def test_status_names_the_entry_that_was_edited_and_not_its_siblings(project):
    project.write(step=DIAMOND)
    project.repro()
    assert dvc.status() == {}
    project.write(step={**DIAMOND, "c": {"reads": "a", "text": "new"}})
    assert list(dvc.status()) == ["step@c"]
    assert dvc.status(["step@b"]) == {}


def test_the_values_are_parsed_once_for_all_stages_and_anew_the_next_time(project, monkeypatch):
    project.write(step=DIAMOND)
    for name in dvc.graph():
        dvc.repro(name)
    parsed = []
    read = param.load_path
    monkeypatch.setattr(param, "load_path", lambda path, fs: parsed.append(path) or read(path, fs))
    assert dvc.status() == {} and len(parsed) == 1
    project.write(step=DIAMOND | {"d": DIAMOND["d"] | {"text": "other"}})
    assert list(dvc.status()) == ["step@d"] and len(parsed) == 2


def test_the_graph_becomes_mermaid_with_a_colour_per_outcome(project):
    project.write(step={"a": {}, "b": {"reads": "a"}})
    drawn = dvc.mermaid(dvc.graph(), {"step@a": "Completed", "step@b": "Failed"})
    assert drawn.splitlines()[:4] == [
        "flowchart LR", '  s0["step@a"]:::Completed', '  s1["step@b"]:::Failed', "  s0 --> s1",
    ]  # fmt: skip
    assert [line.split()[:2] for line in drawn.splitlines()[4:]] == [
        ["classDef", "Completed"], ["classDef", "Failed"],
    ]  # fmt: skip


def _entry_of(project, inside: bytes):
    """The cache entry that holds these bytes."""
    found = [p for p in (project.folder / ".dvc/cache/files/md5").rglob("*") if p.is_file()]
    (entry,) = [p for p in found if p.read_bytes() == inside]
    return entry


def test_verify_finds_nothing_in_a_sound_cache_and_ignores_what_was_never_pulled(project, capsys):
    project.write(step={"a": {"text": "A"}, "b": {"text": "B"}})
    project.repro()
    _entry_of(project, b"B").unlink()
    assert dvc.verify() == []
    assert dvc.main(["verify"]) == 0
    assert "every entry" in capsys.readouterr().out


@pytest.mark.parametrize("linked", ["hardlink", "copy"])
def test_verify_removes_a_damaged_entry_and_the_stage_makes_it_again(project, capsys, linked):
    (project.folder / ".dvc/config").open("a").write(f"[cache]\n    type = {linked}\n")
    project.write(step={"a": {"text": "sound"}})
    dvc.repro("step@a")
    entry = _entry_of(project, b"sound")
    entry.chmod(0o644)
    before = entry.stat()
    entry.write_bytes(b"rotte")
    os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk error leaves it
    assert dvc.status() == {}, "DVC itself does not notice"

    assert dvc.main(["verify"]) == 1
    said = capsys.readouterr().out
    assert f"damaged: {entry}" in said and "verify --repair" in said
    assert entry.read_bytes() == b"rotte" and (project.folder / "data/a/text").exists(), "as it was"
    assert dvc.main(["verify", "--repair"]) == 1
    assert f"{entry.name} (of data/a)" in capsys.readouterr().out
    assert not entry.exists()
    assert dvc.repro("step@a", force=linked == "copy") == "Completed"
    assert project.text("a") == "sound"
    assert dvc.verify() == []


def test_verify_removes_every_copy_of_the_damaged_bytes(project, tmp_path):
    (project.folder / ".dvc/config").open("a").write("[cache]\n    type = hardlink\n")
    project.write(step={"a": {"text": "sound"}, "b": {"text": "sound"}})
    project.repro()
    entry = _entry_of(project, b"sound")
    other = tmp_path / "worktree"
    (other / "data/b").mkdir(parents=True)
    os.link(entry, other / "data/b/text")
    entry.chmod(0o644)
    entry.write_bytes(b"rotte")
    copies = [folder / "text" for folder in (Path("data/a"), Path("data/b"), other / "data/b")]
    assert all(copy.read_bytes() == b"rotte" for copy in copies)
    assert len(dvc.verify(repair=True, checkouts=[other])) == 1
    assert not any(copy.exists() for copy in copies)


def test_verify_names_a_damaged_folder_listing(project):
    project.write(step={"a": {"text": "A"}})
    dvc.repro("step@a")
    (listing,) = (project.folder / ".dvc/cache/files/md5").rglob("*.dir")
    listing.chmod(0o644)
    listing.write_text("[not json")
    found = dvc.verify(repair=True)
    assert [(d.output, d.entry.name) for d in found] == [("data/a", listing.name)]
    assert not listing.exists()


def test_studies_are_read_only_where_they_are_named(project, monkeypatch):
    """Four of five stages: what does not ask for them does not wait for them."""
    from dvc.repo.index import Index

    project.write(step={"a": {"text": "A"}}, study={"long": {"reads": "a", "text": "S"}})
    read, files = Index.from_file.__func__, []
    monkeypatch.setattr(
        Index,
        "from_file",
        classmethod(lambda cls, *args: files.append(args[1]) or read(cls, *args)),
    )
    assert list(dvc.graph()) == ["step@a"] and dvc.status().keys() == {"step@a"}
    assert {Path(file).relative_to(project.folder) for file in files} == {Path("dvc.yaml")}
    named = ["step@a", "studies/dvc.yaml:study@long"]
    assert list(dvc.graph(["studies/dvc.yaml"])) == named
    for name in named:
        dvc.repro(name)
    Path("data/study/long/text").unlink()
    Path("data/a/text").unlink()
    dvc.checkout(project.folder)  # a study that was made is an output like others
    assert project.text("study/long") == "A S" and project.text("a") == "A"
    assert dvc.verify() == []
