"""Downloads and checks of the four public data sets."""
