"""`python -m aia_jax.benchmarks.<what>`: this project beside its peers, timed on the machine at hand."""
