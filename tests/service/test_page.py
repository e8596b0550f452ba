"""The page, clicked and typed through in a real browser."""

import os
from pathlib import Path

import pytest
from browser import TEXT, browser, needs_chromium
from http_worlds import running, wait_until, write_clustered, write_corpus
from rooms import run_room

from stages.serve.http.catalogue import Catalogue, read_entries

pytestmark = needs_chromium
ROOT = Path(__file__).parents[2]
STATE = "document.body.dataset.state"
QUESTION = "Which town has a tower?"


@pytest.fixture
def page(tmp_path):
    with browser(tmp_path / "profile") as page:
        yield page
        assert page.complaints == [], "no error, and nothing that the policy forbids"


@pytest.fixture
def ahead(project):
    write_clustered()
    with running(Catalogue(read_entries(), {"hot_mib": 4, "budget_mib": 1})) as service:
        yield service


def focused(page) -> str:
    return page.value("document.activeElement.id || document.activeElement.value || ''")


def tab_to(page, wanted: str) -> None:
    for _ in range(20):
        if focused(page) == wanted:
            return
        page.press("Tab")
    pytest.fail(f"the keyboard does not reach {wanted}; it is at {focused(page)}")


def count(page, selector: str) -> int:
    return page.value(f"document.querySelectorAll('{selector}').length")


def fits(page) -> bool:
    """Nothing sticks out to the right."""
    return page.value("document.documentElement.scrollWidth <= window.innerWidth")


def test_by_keyboard_on_a_phone_both_ways_are_asked_and_compared(ahead, page):
    page.open(ahead.url, width=360)
    page.wait(f"{STATE} === 'idle'")
    assert fits(page)
    tab_to(page, "question")
    page.type(QUESTION)
    tab_to(page, "lookahead")  # the radio that is chosen
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.value("document.querySelector('input[name=ahead]:checked').value") == "both"
    tab_to(page, "ask")
    page.press("Enter")
    page.wait(f"{STATE} === 'done'")
    assert focused(page) == "results" and fits(page)
    text = page.value(TEXT)
    for said in (
        "Answer, none",
        "Answer, lookahead",
        "Compared",
        "Both answers are the same",
        "whole answer",
        "first token",
        "waiting for searches",
        "clusters were there",
    ):
        assert said in text, said
    assert "“none” ran first" in text and "began with nothing in memory" in text
    assert count(page, "article svg") == 2
    assert count(page, "svg rect.LLM") == 4 and count(page, "svg rect.Search") == 4
    assert count(page, "svg rect.copy") >= 1 and count(page, "svg rect.hint") == 1
    # Copies lie below the model's window, at the same time: that is the overlap.
    run = "[...document.querySelectorAll('article')].at(-1)"  # the one with lookahead
    llm, copy = (
        page.value(
            f"(r => [r.x, r.right, r.y])({run}.querySelector('rect.{kind}')"
            ".getBoundingClientRect())"
        )
        for kind in ("LLM", "copy")
    )
    assert llm[0] <= copy[0] and copy[1] <= llm[1] and copy[2] > llm[2]
    assert page.value("document.querySelector('svg').getAttribute('aria-label')").startswith("Time")
    page.click("#ask")  # again: the other one begins, and the columns stay as they were
    page.wait(f"{STATE} === 'done' && {TEXT}.includes('“lookahead” ran first')")
    heads = "[...document.querySelectorAll('#comparison th[scope=col]')].map(h => h.textContent)"
    assert page.value(heads) == ["", "none", "lookahead", "none / lookahead"]
    assert page.value("document.querySelector('#runs h2').textContent") == "Answer, lookahead"


def test_by_mouse_a_passage_shows_its_text_and_where_it_comes_from(ahead, page):
    page.open(ahead.url, width=1200)
    page.wait(f"{STATE} === 'idle'")
    page.click("#question")
    page.type(QUESTION)
    page.click("input[value=none]")
    page.click("#ask")
    page.wait(f"{STATE} === 'done'")
    assert count(page, "article ol:first-of-type > li") == 3
    assert "locator" not in page.value(TEXT)
    page.click("article ol:first-of-type summary")
    text = page.value(TEXT)
    for said in ("score", "docid", "document", "locator", "towns.txt:d", "found by"):
        assert said in text, said
    assert count(page, "svg rect.copy") == 0 and count(page, "svg rect.hint") == 0
    page.click("article ol:last-of-type summary")
    assert "The model writes" in page.value(TEXT)


def test_a_passage_with_line_separators_of_unicode_is_shown(project, page):
    write_corpus(["Lyon is\u2028in France.", "Turin is\u2029in Italy.", "Porto.", "Graz."])
    run_room("index", "words")
    with running(Catalogue(read_entries(["read"]))) as service:
        page.open(service.url, width=1200)
        page.wait(f"{STATE} === 'idle'")
        page.click("#question")
        page.type("Lyon and Turin")
        page.press("Enter")
        page.wait(f"{STATE} === 'done'")
        page.click("article ol:first-of-type summary")
        text = page.value(TEXT)
        assert "No passage was read" not in text and "found by" in text


def test_what_went_wrong_is_said_in_words_and_a_key_helps(project, page):
    key = "the-key"
    with running(Catalogue(read_entries(["closed"])), key=key) as service:
        page.open(service.url, width=360)
        page.wait(f"{STATE} === 'failed'")
        assert "Unauthorized (401)" in page.value(TEXT) and "Type the service's key" in page.value(
            TEXT
        )
        page.complaints.clear()  # the browser notes the 401
        page.click("#key-box summary")
        page.click("#key")
        page.type(key)
        page.press("Tab")
        page.wait(f"{STATE} === 'idle'")
        page.click("#ask")
        page.click("#question")
        page.type("   ")
        page.press("Enter")
        page.wait(f"{STATE} === 'failed'")
        assert "Type a question first" in page.value(TEXT)
        page.type("x" * 2500)
        page.press("Enter")
        page.wait(f"{STATE} === 'failed' && {TEXT}.includes('context')")
        assert page.value("document.querySelector('[role=alert]').hidden") is False


def test_stop_gives_the_models_place_back(project, page):
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("max_tokens: 8", "max_tokens: 1500"))
    with running(Catalogue(read_entries(["closed"]))) as service:
        page.open(service.url, width=1200)
        page.wait(f"{STATE} === 'idle'")
        page.click("#question")
        page.type("Where is Lyon?")
        page.press("Enter")
        page.wait("document.querySelector('.answer')?.textContent.length > 5")
        page.click("#stop")
        page.wait(f"{STATE} === 'stopped'")
        assert "Stopped. The model's place is free again." in page.value(TEXT)
        wait_until(lambda: service.metric("quarry_generator_rows", model="lm") == 0, "it is free")


def test_the_page_is_dark_where_the_system_is_and_loads_nothing_from_elsewhere(service, page):
    colours = {}
    for scheme in ("light", "dark"):
        page.open(service.url, width=1200, scheme=scheme)
        page.wait(f"{STATE} === 'idle'")
        colours[scheme] = page.value("getComputedStyle(document.body).backgroundColor")
    assert colours["light"] != colours["dark"]
    loaded = page.value("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(name.startswith(service.url) for name in loaded)


@pytest.mark.skipif("QUARRY_SERVE_SCREENSHOT" not in os.environ, reason="no picture was asked for")
def test_picture(page, monkeypatch):
    """QUARRY_SERVE_SCREENSHOT=docs/serve.png: the page over the catalogue that was built here."""
    monkeypatch.chdir(ROOT)
    slow = {"disk_mib_s": 20, "hot_mib": 64, "budget_mib": 64}
    entry = os.environ.get("QUARRY_SERVE_ENTRY", "rag-fanoutqa-leaf")
    with running(Catalogue(read_entries([entry]), slow)) as service:
        page.open(service.url, width=1000, height=900)
        page.wait(f"{STATE} === 'idle'")
        page.click("#question")
        page.type("What is the capital of France?")
        if page.value("!document.querySelector('input[value=both]').disabled"):
            page.click("input[value=both]")
        page.press("Enter") if focused(page) == "question" else page.click("#ask")
        page.wait(f"{STATE} === 'done'")
        page.click("article ol:first-of-type summary")
        page.picture(ROOT / os.environ["QUARRY_SERVE_SCREENSHOT"])
