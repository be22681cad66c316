"""Evaluators, one for each system: outputs of a split to metrics, files and pictures."""
