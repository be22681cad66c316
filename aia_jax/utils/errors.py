"""Errors that speak to a user. The commands print their message without a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field of the config, a folder.

    The message says what was wrong, where, and what would be right.
    """


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite. The message names the step and the last good checkpoint."""


class Interrupted(Exception):
    """A signal asked the run to stop; the state was saved first.

    Attributes:
        signum: the signal's number; the command exits with `128 + signum`.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
