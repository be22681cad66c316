"""The page of photos that `aia annotate --html` leaves."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from aia_jax.inference.annotation_output import AnnotationOutput
from aia_jax.inference.thumbnails import Thumbnail
from aia_jax.report.gallery import GalleryWriter, PageLabel, PagePicture


def write_gallery(path: Path, photos: Path, labels: Sequence[str], written: AnnotationOutput) -> None:
    """Writes all photos of an output that keeps pictures, and those that could not be read, as a page at `path`.

    Args:
        photos: their folder.
        labels: the annotator's.
    """
    folder = photos.resolve()
    places = {label: place for place, label in enumerate(labels)}
    bar = tqdm(written.read(), desc="page", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
    with GalleryWriter(
        path, title=folder.name or str(folder), subtitle=str(folder), labels=labels, problems=list(written.problems())
    ) as page:
        for name, found in bar:
            shown = [PageLabel(places[label], score) for label, score in found]
            picture = written.pictures.get(name)
            page.add(name, shown, picture and _shown(picture, places))


def _shown(picture: Thumbnail, places: dict[str, int]) -> PagePicture:
    maps = zip(picture.labels, picture.maps, strict=True)
    return PagePicture(picture.webp, {places[label]: heat for label, heat in maps})
