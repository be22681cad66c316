"""Annotated images: reads annotation files, resizes the images, and loads the splits."""
