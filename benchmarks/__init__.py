"""Compares the speed of this project with that of its peers on this machine: `python -m benchmarks.<name>`."""
