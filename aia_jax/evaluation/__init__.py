"""One evaluator for each system. An evaluator turns model outputs for a split into metrics, files and pictures."""
