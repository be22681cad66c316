"""Training: step, state, trainer and checkpoints. Works for every system (annotation, retrieval and search)."""
