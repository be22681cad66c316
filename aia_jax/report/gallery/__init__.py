"""A page of photos with their labels, one HTML file that opens from disk; the page's own parts lie beside this file."""

from aia_jax.report.gallery.writer import GalleryWriter, PageLabel, PagePicture

__all__ = ["GalleryWriter", "PageLabel", "PagePicture"]
