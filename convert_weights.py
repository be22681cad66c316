"""Converts PyTorch weights: `python convert_weights.py --config C --input FILE --output DIR`; see `--help`."""

from aia_jax.cli.main import run_script

if __name__ == "__main__":
    run_script("convert")
