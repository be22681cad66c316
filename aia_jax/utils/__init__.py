"""Helpers for errors, files, messages and configs."""
