"""Evaluators, one for each system. They turn the outputs of a split into metrics, files and pictures."""
