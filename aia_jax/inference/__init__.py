"""Loads trained models, annotates and searches photos, and exports models."""
