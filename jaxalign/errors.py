"""The one error a user is meant to read."""


class InputError(Exception):
    """Bad input: the message says what is wrong, where (file, row, field) and what to do, in one line.

    A command that meets one prints the message and ends with exit code 2.
    """
