"""Public data sets: download, unpack and check."""
