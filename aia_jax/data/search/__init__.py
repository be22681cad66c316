"""Queries, clicks and keywords for image search."""
