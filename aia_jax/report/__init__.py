"""Draws results as pictures, HTML pages and tables. Only the packages cli, evaluation and inference import this."""
