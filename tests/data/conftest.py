import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes bytes, or a value as JSON, to a file in `tmp_path`."""

    def write(content: object, name: str = "file"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write
