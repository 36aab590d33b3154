"""Chromium without a window, driven over its debugging pipe. Owns one page: open, wait for text, click, picture."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import STOP_SECONDS, wait_for

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()

# Chromium reads commands from descriptor 3 and answers on 4; whatever else has these numbers is moved out of the way.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One tab. Every command waits for its answer; events in between are not looked at."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", closefd=False)
        self._sent = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _call(self, method: str, **parameters: Any) -> Any:  # Any: the protocol's JSON
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium ended"
            found += byte
        return bytes(found)

    def open(self, url: str, *, width: int, height: int) -> None:
        """Load a page at a size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:  # Any: the value of the JavaScript expression
        """The value of an expression in the page."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def read_text(self) -> str:
        """What a person can read on the page."""
        return str(self.evaluate("document.body.innerText"))

    def click(self, role: str, label: str, seconds: float = 30.0) -> None:
        """Click the element of an ARIA role with this label, once it is there."""
        chosen = (
            f"[...document.querySelectorAll('[role={role}]')].find(e => e.textContent.trim() == {json.dumps(label)})"
        )
        wait_for(f"a {role} {label!r} on the page", seconds, lambda: self.evaluate(f"!!{chosen}"))
        self.evaluate(f"{chosen}.click()")

    def save_picture(self, path: Path) -> None:
        """The visible part as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_browser(chromium: Path, folder: Path) -> Iterator[Page]:
    """A new Chromium with a profile of its own in `folder`."""
    profile = f"--user-data-dir={folder / 'chromium'}"
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(command_end), str(answer_end), str(chromium), *FLAGS, profile],
            pass_fds=(command_end, answer_end),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(command_end)
    os.close(answer_end)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        process.terminate()
        process.wait(STOP_SECONDS)
