"""Corrects the labels of photos and retrains the head of an annotator: the work behind `aia review`."""
