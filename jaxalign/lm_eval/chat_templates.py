"""Chat templates, rendered in a process of their own: they are programs of whoever made the model, and may never end.

That process is this file, run as a script: it answers each line of JSON, the arguments of transformers' renderer, with
a line of JSON, {"text": ...} or {"error": ...}; or it is ended by the system, whatever it is at.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SECONDS = 10
"""For one text; a released template takes a few milliseconds."""


class NotRendered(Exception):
    """The message says why."""


class Renderer:
    """Renders conversations by one template after the other."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, **arguments: Any) -> str:
        """The text of one conversation; NotRendered where the template refuses it, or does not end."""
        if self.process is None:
            command = [sys.executable, __file__]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(arguments, default=str), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            self.process.communicate()
            self.process = None
            raise NotRendered(f"it was not done after {SECONDS} seconds, or took more memory than there is")
        answer = json.loads(line)
        if "error" in answer:
            raise NotRendered(answer["error"])
        return answer["text"]


def rendered(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The answer to one line."""
    from transformers.utils.chat_template_utils import render_jinja_template

    signal.alarm(SECONDS)  # which ends this process even in the middle of one long operation
    try:
        texts, _ = render_jinja_template(**arguments)
        return {"text": texts[0]}
    except Exception as error:  # whatever a template raises
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    for request in sys.stdin:
        print(json.dumps(rendered(json.loads(request))), flush=True)
