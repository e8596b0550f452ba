"""The plan for 10^9 passages: its arithmetic by hand, its sources, and the page that shows it."""

import re
from pathlib import Path

import pytest

from tools import scale
from tools.scale import MEASURED, Wish, plan

DOCS = Path(__file__).resolve().parents[2] / "docs"

# A million passages on machines of 0.1 GB, ten queries a second, rates for doing it in the head.
SMALL = Wish(passages=1e6, queries=10, shard=1e5, answered=0.5, changed=0.1, load=0.5, copies=3,
             centroids=1_000, machine_gb=0.1, core_hour=2, gb_hour=0.5, gb_month=10)  # fmt: skip
RATES = {"ingest": 1_000, "encode": 10, "encode_question": 100, "bm25_build": 500,
         "bm25_search": 100, "ivf_search": 1_000, "fuse": 4, "evaluate": 1_000, "read": 0.5,
         "write": 0.25, "http": 2.0, "stage": 1.2, "triples": 7_240, "postings": 50, "text": 400,
         "name": 16}  # fmt: skip


def needs() -> dict[str, scale.Need]:
    return {need.room: need for need in plan(SMALL, RATES)}


def test_the_build_is_work_over_rate_on_the_cores_that_were_measured() -> None:
    of = needs()
    assert of["ingest"].core_hours == pytest.approx(2 * 1e6 / 1_000 / 3600)
    assert of["ingest"].gb == pytest.approx(1e6 * 400 / 1e9)
    assert of["ingest"].shards == 10
    assert of["triples"].core_hours == pytest.approx(2 * 1e6 * 724 / 7_240 / 3600)
    assert of["flow"].core_hours == pytest.approx(3 * 10 * 1.2 / 3600)


def test_vectors_are_encoded_assigned_and_read_by_the_share_of_lists() -> None:
    """A core compares 1,000 x (200,000 x 32 / 512 + 512) / 2 = 6,506,000 vectors a second."""
    speed = 6_506_000
    need = needs()["index: vectors"]
    assert need.core_hours == pytest.approx((1e6 / 10 + 1e6 * 1_000 / speed) / 3600)
    assert need.gb == pytest.approx(1e6 * (384 + 16) / 1e9)  # 0.4 GB
    assert need.shards == 4 and need.ram_gb == pytest.approx(3 * 0.4)
    read = 1e6 * 32 / 1_000 + 1_000
    assert need.cores == pytest.approx(10 * (read / speed + 1 / 100) / 0.5)


def test_words_take_as_many_shards_as_memory_asks_for_and_time_as_the_corpus_grows() -> None:
    need = needs()["index: words"]
    assert need.gb == pytest.approx(1e6 * (50 * 8 + 16) / 1e9)  # 0.416 GB on machines of 0.1
    assert need.shards == 5
    assert need.cores == pytest.approx(10 * (1e6 / 11_429 / 100) / 0.5)


def test_words_take_as_many_shards_as_their_postings_need_numbers_of_four_bytes() -> None:
    roomy = SMALL._replace(passages=1e9, machine_gb=1e6)
    (need,) = (need for need in plan(roomy, RATES) if need.room == "index: words")
    assert need.shards == 24  # 5 x 10^10 / 2^31 = 23.3


def test_serving_is_seconds_of_a_core_by_queries_by_load() -> None:
    of = needs()
    assert of["serve: HTTP"].cores == pytest.approx(10 * 0.002 / 0.5)
    assert of["serve: answers"].cores == pytest.approx(10 * 0.5 * (2 / 0.5 + 2 / 0.25) / 0.5)
    assert of["fuse"].cores == pytest.approx(2 * 10 / 4 / 0.5)


def test_a_day_encodes_what_is_new_and_builds_the_words_whole() -> None:
    need = needs()["each day"]
    assert need.cores == pytest.approx((1e5 / 10 + 1e6 / 500) / 3600 / 24)
    assert need.gb == pytest.approx(1e6 * 384 * 4 / 1e9)


def test_money_is_cores_memory_and_storage_by_their_prices() -> None:
    need = scale.Need("room", "engine", (), gb=7, core_hours=100, cores=3, ram_gb=20)
    assert need.once(SMALL) == 100 * 2.0
    assert need.month(SMALL) == (3 * 2.0 + 20 * 0.5) * 730 + 7 * 10.0


def test_derivations_end_with_the_figures_of_the_table() -> None:
    for need in plan(Wish()):
        text = " ".join(need.how)
        for figure in (need.cores, need.core_hours):
            if figure and need.room not in ("each day", "index: vectors"):  # sums of two
                assert f"= {scale.n(figure)} " in text, need.room


@pytest.mark.parametrize("name", [name for name, m in MEASURED.items() if m.row])
def test_a_rate_is_about_what_its_page_says(name: str) -> None:
    """To a half: benchmarks are run again. Beyond that the plan is out of date."""
    rate = MEASURED[name]
    said = (DOCS / rate.page).read_text(encoding="utf-8")
    (line,) = (line for line in said.splitlines() if line.startswith(rate.row))
    figure = float(re.search(r"\d[\d,]*\.?\d*", line.split("|")[rate.cell])[0].replace(",", ""))
    assert 2 / 3 < figure / rate.value < 3 / 2, (
        f"docs/{rate.page} says {figure:g}; edit tools/scale.py and run it with --write"
    )


def test_the_page_shows_what_the_script_prints() -> None:
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.page_with(page, scale.tables(Wish())) == page, "python tools/scale.py --write"


def test_the_text_of_the_page_repeats_only_figures_of_its_tables() -> None:
    before, _, rest = scale.PAGE.read_text(encoding="utf-8").partition(scale.BEGIN)
    printed = rest.partition(scale.END)[0]
    said = before.partition("## What it says")[2]
    for figure in ("9,168 core-hours", "22,597", "188 GB/s", "179 times", "97.5 core-hours"):
        assert figure in said and figure in printed, figure


def test_another_wish_prints_another_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--passages", "1e6", "--queries", "10"]) == 0
    printed = capsys.readouterr().out
    assert printed == scale.tables(Wish(passages=1e6, queries=10))
    assert "= 9.17 core-hours" in printed  # 10^6 / 30.3 / 3600
