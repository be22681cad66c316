"""Reads and writes keywords in the metadata of photos: XMP in sidecars and inside photos, and IPTC."""
