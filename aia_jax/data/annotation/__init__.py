"""Annotated images: label lists, prepared copies and splits."""
