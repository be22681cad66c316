"""Errors for users. The commands print their messages without a traceback."""


class InputError(ValueError):
    """A file, folder or config field that the user gave cannot be used.

    The message says what is wrong, where, and what would be right.
    """


class NonFiniteLossError(RuntimeError):
    """The training loss is NaN or infinite. The message names the step and the last good checkpoint."""


class Interrupted(Exception):
    """A signal stopped the run, after its state was saved.

    Attributes:
        signum: number of the signal; the command exits with `128 + signum`.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
