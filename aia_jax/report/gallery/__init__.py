"""A gallery of photos with their labels as one HTML file that opens from disk."""
