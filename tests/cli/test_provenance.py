"""What a result says of the command that made it."""

import pytest

from jaxalign.configuration import command


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/usr/bin/jaxalign", "jaxalign train 'my pairs.csv'"),
        ("/site-packages/jaxalign/__main__.py", "jaxalign train 'my pairs.csv'"),
        ("/home/me/tune.py", "tune.py train 'my pairs.csv'"),
    ],
)
def test_the_command_is_that_of_the_program_that_ran(monkeypatch: pytest.MonkeyPatch, program: str, said: str):
    monkeypatch.setattr("sys.argv", [program, "train", "my pairs.csv"])
    assert command() == said
