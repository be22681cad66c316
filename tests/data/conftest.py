import json

import numpy as np
import pytest


@pytest.fixture
def write(tmp_path):
    """Writes bytes, an array, or a value as JSON to a file in `tmp_path`; None removes the file."""

    def write(content: object, name: str = "file"):
        path = tmp_path / name
        if content is None:
            path.unlink()
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write
