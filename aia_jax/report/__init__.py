"""Pictures, HTML pages and tables of results. Only the commands, `evaluation` and `inference` import this package."""
