"""A build that is started from the page's own form, by clicks, and watched to its end."""

import os
import shutil
import time
from pathlib import Path

from browser import PATIENCE, TEXT, Page, browser, needs_chromium
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from flows import deploy
from flows.policy import DeployPolicy
from flows.worktree import git

LINES = "document.querySelectorAll('form textarea')"
BUTTONS = "[...document.querySelectorAll('button')].filter(e => e.innerText.trim() === '{}')"
TAB = "[...document.querySelectorAll('a, button, li')].find(e => e.innerText === 'Artifacts')"
DRAW_SECONDS = 1  # of the page's animations, before a picture
ANSWER_SECONDS = 10  # after which a form that was not accepted is sent again


def press(page: Page, element: str) -> None:
    """A click into the middle of what a script expression gives."""
    page.wait(f"!!{element}")
    page.value(f"{element}.id = 'pressed'")
    page.click("#pressed")
    page.value("document.querySelector('#pressed')?.removeAttribute('id')")


def add_line(page: Page, of_list: int, text: str) -> None:
    """One more line in one of the form's lists; lines are counted over all of them."""
    no = page.value(f"{LINES}.length")
    press(page, f"{BUTTONS.format('Add item')}[{of_list}]")
    press(page, f"{LINES}[{no}]")
    page.type(text)


def submit(page: Page) -> None:
    """Press the button until the page is left, as people do.

    The form's request reads and then writes in one SQLite transaction: where another one commits in
    between, Prefect's server answers 503, the page says "Oops" and stays. It sends one at a time.
    """
    pressed, deadline = 0.0, time.monotonic() + PATIENCE
    while page.value("location.pathname.endsWith('/run')"):
        assert time.monotonic() < deadline, f"not accepted; {page.value(TEXT)}"
        if time.monotonic() > pressed + ANSWER_SECONDS:
            press(page, f"{BUTTONS.format('Submit')}[0]")
            pressed = time.monotonic()
        time.sleep(0.2)


def await_run(page: Page, deployment: str) -> str:
    """The id of the first flow run of a deployment, when there is one; the page says why not."""
    asked = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    deadline = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while not (runs := client.read_flow_runs(deployment_filter=asked)):
            assert time.monotonic() < deadline, f"no run; {page.value(TEXT)}"
            time.sleep(0.2)
    return str(runs[0].id)


@needs_chromium
def test_the_form_starts_a_build_with_other_values_and_the_page_shows_how_it_went(
    world, server, server_process, monkeypatch, tmp_path
) -> None:
    """With QUARRY_FORM_SCREENSHOT=docs/form.png the picture of the form is kept."""
    monkeypatch.setenv("PREFECT_HOME", str(server_process[1]))
    _, form = deploy.deploy(world.folder, DeployPolicy(cron=[]))
    pages = server.removesuffix("/api")
    with deploy.working(server), browser(tmp_path / "profile") as page:
        page.open(f"{pages}/deployments/deployment/{form}/run", width=1200, height=1100)
        add_line(page, 0, "evaluate@notes")
        add_line(page, 1, "serve.bm25.k=3")
        time.sleep(DRAW_SECONDS)
        page.picture(tmp_path / "form.png")
        submit(page)
        run = await_run(page, form)

        page.open(f"{pages}/runs/flow-run/{run}", width=1200, height=1400)
        page.wait(f"({TEXT}).includes('dvc exp apply')")
        for stage in ("ingest@notes", "index@words", "serve@bm25", "evaluate@notes"):
            assert page.value(f"({TEXT}).includes('{stage}')"), stage
        assert page.value(f"({TEXT}).includes('4 stages: 1 Completed, 3 Unchanged')")

        press(page, TAB)
        page.wait("location.search.includes('Artifacts')")
        for key in ("leaderboard", "graph", "plots", "report"):
            page.wait(f"({TEXT}).includes('{key}')")
    assert git(world.folder, "status", "--porcelain") == ""
    assert git(world.folder, "for-each-ref", "refs/exps"), "an experiment"
    if wanted := os.environ.get("QUARRY_FORM_SCREENSHOT"):
        shutil.copy(tmp_path / "form.png", Path(__file__).parents[2] / wanted)
