"""Writes the HTML page of `aia annotate --html`."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from aia_jax.inference.annotation_output import AnnotationOutput
from aia_jax.report.gallery import GalleryWriter, PageLabel, PagePicture


def write_gallery(path: Path, photos: Path, labels: Sequence[str], output: AnnotationOutput) -> None:
    """Writes a page with all photos of an output with pictures, and a list of the unreadable ones, to `path`.

    Args:
        photos: the folder of the photos.
        labels: the annotator's labels.
        output: the annotations.
    """
    folder = photos.resolve()
    numbers = {label: number for number, label in enumerate(labels)}
    bar = tqdm(output.read(), desc="page", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
    with GalleryWriter(
        path, title=folder.name or str(folder), subtitle=str(folder), labels=labels, problems=list(output.problems())
    ) as page:
        for name, scored in bar:
            thumbnail, picture = output.pictures.get(name), None
            if thumbnail:
                maps = zip(thumbnail.labels, thumbnail.maps, strict=True)
                picture = PagePicture(thumbnail.webp, {numbers[label]: heat for label, heat in maps})
            page.add(name, [PageLabel(numbers[label], score) for label, score in scored], picture)
