"""`python -m aia_jax <command>`."""

import sys

from aia_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
