"""Reading params.yaml: every mistake names its place, what was expected and what is near."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveInt

from stages import params
from stages.errors import QuarryError


class Cut(params.Entry):
    """A block inside an entry."""

    words: int = 5


class Params(params.Entry):
    """A small entry."""

    kind: Literal["flat", "ivf"]
    corpus: str
    nprobe: PositiveInt = 8
    scale: float = 1.0
    split: bool = False
    cut: Cut | None = None


OPTIONS = {"flat": "flat", "ivf": "ivf"}


@pytest.fixture
def written(tmp_path: Path):
    """Writes params.yaml and gives back its path."""

    def write(text: str) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load(path: Path) -> Params:
    return params.load(Params, "index", "mine", path=path)


def test_an_entry_is_read_with_its_defaults_and_cannot_be_changed(written) -> None:
    values = load(written("index: {mine: {kind: ivf, corpus: nq, scale: 2}}"))
    assert values == Params(kind="ivf", corpus="nq", nprobe=8, scale=2.0, split=False)
    with pytest.raises(ValueError, match="frozen"):
        values.nprobe = 9


def test_values_are_those_that_dvc_reads(written) -> None:
    path = written("index:\n  a: {kind: flat, corpus: off, scale: 1e-4}\n")
    loaded = params.load(Params, "index", "a", path=path)
    assert (loaded.corpus, loaded.scale) == ("off", 1e-4)  # YAML 1.1 has False and "1e-4"


def test_a_study_entry_is_read_from_its_own_block(written) -> None:
    path = written("index: {}\nstudies: {index: {mine: {kind: flat, corpus: nq}}}")
    assert params.load(Params, "index", "mine", study=True, path=path).corpus == "nq"
    with pytest.raises(QuarryError, match="no entry 'mine' under 'index'"):
        load(path)


def test_a_misspelt_key_is_named_with_the_nearest_and_all_known_ones(written) -> None:
    path = written("index: {mine: {kind: flat, corpus: nq, nprobes: 4}}")
    with pytest.raises(QuarryError) as e:
        load(path)
    assert str(e.value) == (
        f"{path}: bad values:\n"
        f"  index.mine.nprobes: unknown key. Did you mean 'nprobe'? "
        f"Known here: kind, corpus, nprobe, scale, split, cut."
    )


@pytest.mark.parametrize(
    ("written_value", "message"),
    [
        ("nprobe: '8'", "index.mine.nprobe: Input should be a valid integer, got '8'"),
        ("nprobe: 0", "index.mine.nprobe: Input should be greater than 0, got 0"),
        ("nprobe: 2.5", "index.mine.nprobe: Input should be a valid integer, got 2.5"),
        ("split: 1", "index.mine.split: Input should be a valid boolean, got 1"),
        ("scale: fast", "index.mine.scale: Input should be a valid number, got 'fast'"),
        ("corpus: [a]", "index.mine.corpus: Input should be a valid string, got ['a']"),
    ],
)
def test_a_value_of_the_wrong_type_is_not_coerced(written, written_value, message) -> None:
    entry = {"kind": "flat", "corpus": "nq"}
    key, value = written_value.split(": ")
    block = ", ".join(f"{k}: {v}" for k, v in {**entry, key: value}.items())
    with pytest.raises(QuarryError) as e:
        load(written(f"index: {{mine: {{{block}}}}}"))
    assert message in str(e.value)


def test_every_mistake_is_reported_at_once(written) -> None:
    with pytest.raises(QuarryError) as e:
        load(written("index: {mine: {kind: hnsw, nprobe: x}}"))
    text = str(e.value)
    assert "index.mine.kind: Input should be 'flat' or 'ivf', got 'hnsw'." in text
    assert "index.mine.corpus: missing; add it." in text
    assert "index.mine.nprobe: Input should be a valid integer" in text


def test_an_unknown_entry_lists_those_there_are(written) -> None:
    path = written("index: {mine-flat: {}, other: {}}")
    with pytest.raises(QuarryError) as e:
        params.entry_values("index", "mine-flta", path=path)
    assert str(e.value) == (
        f"{path}: no entry 'mine-flta' under 'index'. Did you mean 'mine-flat'? "
        f"There are: mine-flat, other."
    )


def test_an_unknown_method_lists_those_there_are(written) -> None:
    path = written("index: {mine: {kind: flatt}}")
    with pytest.raises(QuarryError) as e:
        params.choose("index", "mine", "kind", OPTIONS, path=path)
    assert str(e.value) == (
        f"{path}: index.mine.kind is 'flatt'. Did you mean 'flat'? There are: flat, ivf."
    )


def test_a_misspelt_method_key_shows_the_keys_there_are(written) -> None:
    path = written("index: {mine: {kinds: flat, corpus: nq}}")
    with pytest.raises(QuarryError) as e:
        params.choose("index", "mine", "kind", OPTIONS, path=path)
    assert str(e.value) == (
        f"{path}: index.mine has no key 'kind', one of: flat, ivf. Keys there: kinds, corpus."
    )


def test_a_method_that_is_a_list_is_an_error_not_a_traceback(written) -> None:
    with pytest.raises(QuarryError, match=r"index.mine.kind is \['flat'\]"):
        params.choose(
            "index", "mine", "kind", OPTIONS, path=written("index: {mine: {kind: [flat]}}")
        )


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "index: none\n", "other: {}\n"])
@pytest.mark.parametrize("study", [False, True])
def test_a_file_without_the_block_says_which(written, text: str, study: bool) -> None:
    where = "studies.index" if study else "index"
    with pytest.raises(QuarryError, match=f"no block '{where}'. Add it"):
        params.entries("index", study=study, path=written(text))


def test_an_entry_that_is_no_mapping_is_an_error(written) -> None:
    with pytest.raises(QuarryError, match=r"index.mine must be a mapping of values"):
        load(written("index: {mine: flat}"))


def test_broken_yaml_names_the_line(written) -> None:
    with pytest.raises(QuarryError, match=r"params.yaml: not YAML: (?s:.*)line 2"):
        load(written("index:\n  mine: {kind: flat"))


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"index: {mine: {corpus: \xff}}")
    with pytest.raises(QuarryError, match=r"params.yaml: not YAML: 'utf-8' codec"):
        load(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match="is not here: run from the project's root"):
        load(tmp_path / "params.yaml")


def test_an_unknown_key_of_an_inner_block_is_compared_with_the_keys_there(written) -> None:
    path = written("index: {mine: {kind: flat, corpus: c, cut: {wrods: 3}}}")
    with pytest.raises(QuarryError) as e:
        load(path)
    assert str(e.value).endswith(
        "index.mine.cut.wrods: unknown key. Did you mean 'words'? Known here: words."
    )
