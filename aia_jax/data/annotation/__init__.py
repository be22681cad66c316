"""Annotated images: lists of labels, prepared copies, splits."""
