"""Trained models at work: load, annotate, search, export."""
