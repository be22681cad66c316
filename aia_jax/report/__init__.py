"""Draws results as pictures, HTML pages and tables. Only the commands, `evaluation` and `inference` import this."""
