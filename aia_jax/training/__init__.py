"""Training: the step, the state, the trainer and checkpoints. Independent of any single system."""
