"""Errors for users. The commands print their messages without a traceback."""


class InputError(ValueError):
    """A file, folder, flag or config field that the user gave cannot be used.

    The message names the problem, its place, and the way to correct it.
    """


class NonFiniteLossError(RuntimeError):
    """Training has a NaN or infinite loss, gradient or weight. The message names the step and the last checkpoint."""


class Interrupted(Exception):
    """A signal, such as Ctrl-C, stopped the command. Its results so far were saved first.

    Attributes:
        signum: number of the signal. The command exits with `128 + signum`.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
