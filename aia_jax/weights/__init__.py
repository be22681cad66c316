"""Reads PyTorch weights files safely, identifies them by their array names, and converts weights in both directions."""
