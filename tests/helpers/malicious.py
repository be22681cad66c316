"""A pickle that runs code."""

import os
from pathlib import Path


class Malicious:
    """Unpickling an instance creates the file `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)
