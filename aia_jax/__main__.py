"""`python -m aia_jax <command>`."""

from aia_jax.cli.main import run_program

if __name__ == "__main__":
    run_program()
