"""Errors, files, messages and configs."""
