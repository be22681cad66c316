"""`python -m benchmarks.<what>`: this project beside its peers, timed on the machine at hand."""
