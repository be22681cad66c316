"""Trains a model: `python train.py --config configs/demo.py --workdir runs/demo`; see `--help`."""

from aia_jax.cli.main import run_script

if __name__ == "__main__":
    run_script("train")
