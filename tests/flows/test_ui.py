"""The server's own door, and the pages as a browser shows them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import ui
from flows.build import build
from stages.errors import QuarryError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1000", "--virtual-time-budget=15000", "--timeout=30000",
)  # fmt: skip


def load(url: str, picture: Path, profile: Path) -> str:
    """The page's DOM after it has loaded; its picture goes to a file."""
    argv = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--screenshot={picture}"]
    shown = subprocess.run(
        [*argv, "--dump-dom", url], capture_output=True, text=True, check=True, timeout=120
    )
    return shown.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_flow_runs_page_shows_every_stage_and_its_state(server, project, tmp_path):
    """With QUARRY_SCREENSHOT=docs/flow-run.png the picture is kept."""
    project.write(step={"first": {"text": "1"}, "second": {"reads": "first", "text": "2"}})
    state = build(return_state=True)
    run = state.state_details.flow_run_id
    picture = tmp_path / "page.png"
    page = load(
        f"{server.removesuffix('/api')}/v2/runs/flow-run/{run}", picture, tmp_path / "profile"
    )
    for text in ("step@first", "step@second", "first says hello", "2 Task runs", "Completed"):
        assert text in page, text
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    if wanted := os.environ.get("QUARRY_SCREENSHOT"):
        shutil.copy(picture, Path(__file__).parents[2] / wanted)


def test_the_server_of_this_home_is_found_and_no_other(server, tmp_path):
    from prefect.settings import PREFECT_HOME, temporary_settings

    assert ui.running() == server
    with temporary_settings({PREFECT_HOME: tmp_path}):
        assert ui.running() is None
        (tmp_path / "address").write_text(f"http://127.0.0.1:{ui.free_port()}/api")
        assert ui.running() is None, "what an ended server left behind is not believed"


def test_a_taken_port_is_named_with_what_to_do(server, capsys):
    port = server.split(":")[-1].removesuffix("/api")
    with pytest.raises(QuarryError, match=f"port {port} is taken.*PORT="), ui.serving(int(port)):
        pass
    assert ui.main(["--port", port]) == 2
    assert ui.running() == server, "and the one that runs stays known"


def test_a_server_that_cannot_start_tells_the_end_of_its_log(tmp_path):
    journal = tmp_path / "server.log"
    argv = [sys.executable, "-c", "import sys; sys.exit('file is not a database')"]
    with journal.open("wb") as log, subprocess.Popen(argv, stderr=log) as process:
        url = f"http://127.0.0.1:{ui.free_port()}/api"
        with pytest.raises(
            QuarryError, match=f"(?s){url} did not start.*{tmp_path}.*not a database"
        ):
            ui._wait_until_healthy(process, url, journal)
