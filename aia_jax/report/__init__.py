"""Draws results as pictures, HTML pages and tables. Only `cli`, `evaluation` and `inference` import this."""
