"""Weights files of PyTorch: read safely, recognised by their names, converted strictly both ways."""
