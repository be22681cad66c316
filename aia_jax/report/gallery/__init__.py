"""A gallery of photos and labels in one HTML file, which works without a server."""
