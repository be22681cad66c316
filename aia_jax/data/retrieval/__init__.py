"""Captions and image features for image-text retrieval."""
