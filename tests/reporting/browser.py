"""A headless Chromium that opens one page and tells what the page did: over the DevTools protocol, by pipe.

Chromium reads commands from its file descriptor 3 and writes replies and events to 4, JSON ended by a zero byte.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]  # out of the way of 3 and 4
for own, end in zip((3, 4), ends):
    os.dup2(end, own)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
SWITCHES = (
    *("--headless", "--remote-debugging-pipe", "--no-first-run", "--no-sandbox"),
    *("--disable-gpu", "--disable-dev-shm-usage"),
)
SETTLE_SECONDS = 0.3
"""What a script may take to act once the page is loaded: images that fail, timers of no length."""


def find_browser() -> str:
    """JAXALIGN_BROWSER, or a Chromium of the search path; AssertionError where there is none."""
    found = os.environ.get("JAXALIGN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"no Chromium: install one of {', '.join(NAMES)}, or name its file in JAXALIGN_BROWSER"
    return found


class Page:
    """The one page of a browser, and the events of it so far."""

    def __init__(self, commands: int, replies: int) -> None:
        self.commands, self.replies = os.fdopen(commands, "wb", buffering=0), os.fdopen(replies, "rb")
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}
        self.number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters, **self.session}
        self.commands.write(json.dumps(command).encode() + b"\0")
        while (message := self.read()).get("id") != self.number:
            self.keep(message)
        assert "error" not in message, message
        return message["result"]

    def read(self) -> dict[str, Any]:
        """The next message of the browser."""
        text = bytearray()
        while (byte := self.replies.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        return json.loads(text)

    def keep(self, event: dict[str, Any]) -> None:
        """An event. A dialog that a script opened stops the page until it is answered."""
        if "method" not in event:
            return  # the reply to such an answer
        self.events.append(event)
        if event["method"] == "Page.javascriptDialogOpening":
            self.number += 1
            answer = {"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
            self.commands.write(json.dumps(answer | self.session).encode() + b"\0")

    def open(self, file: Path, *, heed_policy: bool) -> None:
        """Loads a file and waits until whatever is in it has had its time; what came before is forgotten.

        heed_policy: whether the page's Content-Security-Policy counts.
        """
        self.call("Page.setBypassCSP", enabled=not heed_policy)
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.keep(self.read())
        time.sleep(SETTLE_SECONDS)  # not in the page, which may go elsewhere meanwhile
        self.call("Page.getFrameTree")  # with its reply come the events until now

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """What the events of these kinds say."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        said = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def resize(self, width: int, height: int = 800) -> None:
        """A window of so many CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def requests(self) -> list[str]:
        """The addresses that were asked for, but for what lies inside the page itself."""
        asked = [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")]


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A new browser's page; `profile` is a folder for what the browser keeps."""
    read_commands, commands = os.pipe()
    replies, write_replies = os.pipe()
    start = (sys.executable, "-S", "-c", START, str(read_commands), str(write_replies), find_browser())
    process = subprocess.Popen(
        [*start, *SWITCHES, f"--user-data-dir={profile}"],
        pass_fds=(read_commands, write_replies),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_commands)
    os.close(write_replies)
    page = None
    try:
        page = Page(commands, replies)
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a script may stand before the browser, and all of its processes
        process.wait()
        if page is not None:
            page.commands.close()
            page.replies.close()
