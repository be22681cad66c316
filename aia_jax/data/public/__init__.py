"""Downloads and checks the four public data sets of annotated images."""
