"""List the packaged configs.

    aia configs
    aia train --config demo --workdir runs/demo

`--config NAME` uses a packaged config, and `--config FILE.py` a config of your own. If a config takes an argument,
write it after a colon, as in `--config sgraf:f30k,sgr`. To change a packaged config, copy its file.
"""

import argparse

from aia_jax.cli.flags import Parser
from aia_jax.utils.config import CONFIGS, packaged_configs


def add_arguments(parser: Parser) -> None:
    """`aia configs` has no flags."""


def run(_arguments: argparse.Namespace) -> None:
    """Prints the names of the packaged configs with their first lines, and the folder of their files."""
    configs = packaged_configs()
    width = max(map(len, configs)) + 2
    print("\n".join(f"{name:<{width}}{line}" for name, line in configs.items()))
    print(f"\nTheir files are in {CONFIGS}.")
