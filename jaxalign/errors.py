"""The errors that a user is meant to read."""


class InputError(Exception):
    """Bad input: the message says what is wrong, where (file, row, field) and what to do, in one line.

    A command that meets one prints the message and ends with exit code 2.
    """


class Preempted(Exception):
    """A run was told to stop (SIGTERM), and has saved what it had; the exit code is 75."""
