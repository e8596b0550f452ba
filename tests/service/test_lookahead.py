"""An index that fetches ahead, behind the service: a real clustered index, a real encoder."""

from pathlib import Path

import pytest
from http_worlds import (
    ABOUT_TOWNS,
    FINDS,
    SEARCH,
    TOWNS,
    read_events,
    running,
    wait_until,
    write_clustered,
    write_corpus,
)
from rooms import run_room

from stages.errors import QuarryError
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.command import parse, read_ahead
from stages.serve.prefetch.version import Settings


@pytest.fixture
def service(project: Path):
    write_clustered()
    with running(Catalogue(read_entries(), {"hot_mib": 4, "budget_mib": 1})) as service:
        yield service


def ask(service, *, lookahead: bool) -> list[tuple[str, dict]]:
    body = {"question": "Which town has a tower?", "entry": "ahead", "lookahead": lookahead}
    with service.client.stream("POST", "/answer", json=body) as response:
        return list(read_events(response.iter_lines()))


def of(told: list[tuple[str, dict]], name: str) -> list[dict]:
    return [members for named, members in told if named == name]


def copied(service) -> float:
    how = {"entry": "ahead", "index": "clusters", "what": "copied_clusters"}
    return service.metric("quarry_prefetch", **how)


def test_clusters_are_copied_while_the_model_writes_and_the_answer_is_the_same(service):
    row, _ = service.client.get("/catalogue").json()
    assert row["lookahead"] and row["open"]
    without, ahead = ask(service, lookahead=False), ask(service, lookahead=True)
    assert of(without, "done")[0]["answer"] == of(ahead, "done")[0]["answer"]
    assert [e["hits"] for e in of(without, "evidence")] == [
        e["hits"] for e in of(ahead, "evidence")
    ]
    assert not of(without, "hint") and not of(without, "copy")
    assert sum(e["hits"] for e in of(without, "clusters")) == 0
    (hint,), copies = of(ahead, "hint"), of(ahead, "copy")
    writing = next(e for e in of(ahead, "step") if e["kind"] == "LLM")
    assert hint["query"] == "Which town has a tower?"
    assert copies and sum(c["clusters"] for c in copies) == 8
    assert all(c["start_ms"] <= c["end_ms"] <= writing["end_ms"] for c in copies)
    assert all(e["misses"] == 0 for e in of(ahead, "clusters")), "all that is probed was there"
    assert copied(service) == 8


def test_a_rebuilt_index_is_fetched_ahead_anew_and_the_old_engine_is_closed(service):
    ask(service, lookahead=True)
    old = service.catalogue.shelf(service.catalogue.entries["ahead"])
    write_corpus([*ABOUT_TOWNS, "Which town has a tower? Pisa."])
    run_room("index", "clusters")
    wait_until(lambda: service.catalogue.reopened["new"] == 1, "the new index is open")
    found = of(ask(service, lookahead=True), "evidence")[0]["hits"]
    assert "d30#0" in {hit["docid"] for hit in found}
    with pytest.raises(Exception, match="closed"):
        old.retriever.search(["tower"], 1)


def test_a_cluster_that_cannot_be_read_fails_its_question_and_the_service_goes_on(service):
    shelf = service.catalogue.shelf(service.catalogue.entries["ahead"])
    codes = next(Path("data/index/clusters").glob("codes.npy"))
    with codes.open("r+b") as f:  # the same file: the engine has it open
        f.seek(-64, 2)
        f.write(b"\xff" * 64)
    said = [service.post("/search", query=f"{town} has a port", k=3) for town in TOWNS]
    assert {r.status_code for r in said} <= {200, 500} and 500 in {r.status_code for r in said}
    broken = next(r for r in said if r.status_code == 500).json()
    assert "clusters" in broken["detail"] and "cluster" in broken["detail"]
    assert 200 in {r.status_code for r in said}, "other clusters are sound"
    assert shelf.retriever.stats()["failed"] > 0


# -- how it is fetched ahead: an entry's block, the command line --------------------------------


@pytest.fixture
def opened(project: Path):
    """Catalogues, opened; closed at the end."""
    held = []

    def open_it(*options: str, **entries: dict) -> Catalogue:
        write_clustered(**entries)
        held.append(Catalogue(read_entries(), read_ahead(parse(options))))
        held[-1].open()
        return held[-1]

    yield open_it
    for catalogue in held:
        catalogue.close()


def engine(held: Catalogue, entry: str):
    assert entry not in held.why, held.why
    return held.shelf(held.entries[entry]).retriever


ALL = {
    "hot_mib": 3, "budget_mib": 0.5, "strategy": "once", "cache_fraction": 0.25, "depth": 7,
    "nprobe": 2, "scope": "resident", "disk_mib_s": 50, "disk_ms": 2,
}  # fmt: skip
AS_SETTINGS = Settings(
    hot_bytes=3 * 2**20, budget=2**19, strategy="once", cache_fraction=0.25, depth=7, nprobe=2,
    scope="resident", throttle=(50 * 2**20, 0.002),
)  # fmt: skip


def test_an_engine_works_as_the_block_of_its_entry_says(opened):
    held = opened(mine=FINDS | {"ahead": ALL})
    assert engine(held, "mine").settings == AS_SETTINGS
    defaults = Settings(hot_bytes=256 * 2**20, budget=64 * 2**20)
    assert engine(held, "ahead").settings == defaults, "an entry without a block"
    assert engine(held, "find") is engine(held, "ahead"), "they say the same"
    assert {names for names in held.ahead()} == {("clusters", "mine"), ("clusters", "ahead")}
    with held.borrow(held.entries["mine"]) as opened_, opened_.shelf.lent() as own:
        own.search(["a tower"], 3)
    seen = engine(held, "mine").observed[-1].stats
    assert seen.hits + seen.misses == 2, "clusters of its own nprobe; the index's is 3"


def test_the_command_line_holds_in_place_of_what_entries_say(opened):
    options = ("--hot-mib=2", "--budget-mib=auto", "--scope=probed", "--disk-mib=0")
    held = opened(*options, mine=FINDS | {"ahead": ALL})
    said = {"hot_bytes": 2 * 2**20, "budget": None}
    assert engine(held, "mine").settings == AS_SETTINGS._replace(
        **said, scope="probed", throttle=None
    )
    assert engine(held, "ahead").settings == Settings(**said)


def test_codes_that_an_index_has_not_are_refused_when_it_is_opened(opened):
    held = opened(short=FINDS | {"ahead": {"codec": "fp16"}})
    assert "index 'clusters' has no fp16 codes. Add codes: [fp16]" in held.why["short"]
    assert list(held.why) == ["short"]


def test_codes_that_the_command_line_asks_for_and_an_index_has_not_are_refused(opened):
    held = opened("--codec", "int8")
    assert all("has no int8 codes" in held.why[name] for name in ("find", "ahead"))


def test_a_block_over_an_index_without_clusters_is_refused(opened):
    held = opened(plain=SEARCH | {"index": "words", "ahead": {}})
    assert "Name an index of kind clustered" in held.why["plain"]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"codec": "fp8"}, "serve.mine.ahead.codec: Input should be 'fp32', 'fp16' or 'int8'"),
        ({"tier": "gpu"}, "serve.mine.ahead.tier: Input should be 'ram' or 'cuda'"),
        (
            {"budget_mib": "most"},
            "budget_mib: Value error, write a number of MiB, 0 or more, or auto",
        ),
        ({"budget_mib": -1}, "0 or more, or auto, got -1"),
        ({"budget_mib": float("nan")}, "0 or more, or auto, got nan"),
        ({"hot_mib": float("inf")}, "hot_mib: Input should be a finite number"),
        ({"nprobe": 0}, "serve.mine.ahead.nprobe: Input should be greater than 0, got 0"),
        ({"nprob": 1}, "Did you mean 'nprobe'?"),
    ],
)
def test_a_block_that_makes_no_sense_is_refused_at_the_start(project, block, said):
    write_clustered(mine=FINDS | {"ahead": block})
    with pytest.raises(QuarryError) as refusal:
        read_entries()
    assert said in str(refusal.value)
