"""Reads images, labels, captions and queries from files, caches resized images and features, and makes batches."""
