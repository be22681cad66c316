"""Scenes: a data set of drawn images that the package contains."""
