"""Losses as pure functions, one file for each system."""
