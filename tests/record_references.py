"""Records the values that PyTorch and timm compute in the tests, for machines without them.

    python tests/record_references.py

Runs the tests that compare with PyTorch, and writes `tests/references/*.npz`. Needs pip install -e ".[test,parity]".
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    from tests.helpers.references import RECORD

    tests = [path for path in (REPOSITORY / "tests").rglob("test_*.py") if "references import" in path.read_text()]
    sys.exit(
        subprocess.call([sys.executable, "-m", "pytest", "-q", *tests], cwd=REPOSITORY, env=os.environ | {RECORD: "1"})
    )
