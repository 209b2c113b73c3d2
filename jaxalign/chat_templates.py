"""Chat templates, rendered in a process of their own: they are programs of whoever made the model, and may never end.

That process is this file, run as a script, which the system ends when a text takes too long, whatever it is at.
"""

import json
import signal
import subprocess
import sys
from functools import cache
from typing import Any

SECONDS = 10
"""For one text; a released template takes a few milliseconds."""


@cache
def renderer() -> subprocess.Popen[str]:
    # -P: this folder's modules are not to be taken for the standard library's.
    command, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")


def render(**arguments: Any) -> str:
    """The text that transformers makes of one conversation; ValueError where the template refuses, or does not end."""
    process: Any = renderer()
    print(json.dumps([SECONDS, arguments], default=str), file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line.endswith("\n"):
        process.communicate()
        renderer.cache_clear()
        raise ValueError(f"it was not done after {SECONDS} seconds, or took more memory than there is")
    text, error = json.loads(line)
    if error:
        raise ValueError(error)
    return text


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for line in sys.stdin:
        seconds, arguments = json.loads(line)
        text = why = ""
        signal.alarm(seconds)
        try:
            text = render_jinja_template(**arguments)[0][0]
        except Exception as error:  # whatever a template raises
            why = " ".join(str(error).split()) or type(error).__name__
        signal.alarm(0)
        print(json.dumps([text, why]), flush=True)


if __name__ == "__main__":
    main()
