"""Layers and array functions that several models share."""
