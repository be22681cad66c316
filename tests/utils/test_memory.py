"""The settings of the memory allocator."""

import subprocess
import sys

import pytest

from aia_jax.utils import memory

COUNT = """
import resource
import numpy as np
from aia_jax.utils.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_the_system_clears_the_pages_of_a_large_buffer_only_once():
    before, after = map(int, subprocess.check_output([sys.executable, "-c", COUNT]).split())
    assert before >= 10 * 32  # of at most 2 MiB each
    assert after < 32


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")
def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "memory.max")
    of_machine = memory._memory()
    assert of_machine > 1 << 28
    for written, expected in (("max\n", of_machine), ("1048576\n", 1 << 20), (f"{2**60}\n", of_machine)):
        (tmp_path / "memory.max").write_text(written)
        assert memory._memory() == expected
