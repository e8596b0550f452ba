"""A headless Chromium that is clicked and typed into, over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE = 120  # seconds until a wait is an error; no result depends on it
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


class Page:
    """One page; ``complaints`` are its errors, also what its policy forbade."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result."""
        wanted = next(self._ids)
        self._socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=PATIENCE))
            if said.get("id") == wanted:
                assert "error" not in said, (method, said)
                return said["result"]
            if said.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            if said.get("method") == "Log.entryAdded":
                self.complaints.append(said["params"]["entry"]["text"])

    def value(self, expression: str) -> Any:
        """What a script expression gives."""
        said = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never: {expression}; {self.value(TEXT)}"
            time.sleep(0.02)

    def open(self, url: str, *, width: int, height: int = 800, scheme: str = "light") -> None:
        """Load a page in a window of this width, in a light or dark system."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def click(self, selector: str) -> None:
        """A mouse click into an element's middle, once it keeps still and nothing covers it."""
        element = f"document.querySelector({json.dumps(selector)})"
        deadline, before, where = time.monotonic() + PATIENCE, None, self.value(MIDDLE(element))
        while where is None or where != before:
            assert time.monotonic() < deadline, f"no click reaches {selector}; {self.value(TEXT)}"
            time.sleep(0.05)
            before, where = where, self.value(MIDDLE(element))
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left",
                      clickCount=1)  # fmt: skip

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


TEXT = "document.body ? document.body.innerText : ''"
# Where a click reaches an element, or null: it is not there, disabled, or behind another one.
MIDDLE = (
    "(() => {{ const e = {}; if (!e || e.disabled) return null;"
    " e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
    " const at = [r.x + r.width / 2, r.y + r.height / 2];"
    " return e.contains(document.elementFromPoint(...at)) ? at : null; }})()"
).format


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a fresh browser for the length of the block."""
    argv = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            said = profile / "DevToolsActivePort"
            deadline = time.monotonic() + PATIENCE
            while not (said.exists() and said.read_text().count("\n")):
                assert time.monotonic() < deadline and process.poll() is None, "no Chromium"
                time.sleep(0.05)
            port = said.read_text().split("\n")[0]
            targets = httpx.get(f"http://127.0.0.1:{port}/json", timeout=PATIENCE).json()
            url = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
            with connect(url, max_size=2**26, open_timeout=PATIENCE) as socket:
                yield Page(socket)
        finally:
            process.terminate()
