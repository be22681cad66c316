"""A gallery of photos with their labels as one HTML file that opens from disk."""

from aia_jax.report.gallery.writer import GalleryWriter, PageLabel, PagePicture

__all__ = ["GalleryWriter", "PageLabel", "PagePicture"]
