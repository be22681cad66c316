"""Reads PyTorch weights files safely, identifies their models, and converts weights from and to PyTorch."""
