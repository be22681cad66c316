"""A folder of photos with an index, which a model searches by words or sentences."""

import hashlib
from functools import partial
from pathlib import Path

from aia_jax.data.cache import cache_root
from aia_jax.data.photo_folder import photo_names
from aia_jax.data.photo_rows import local_rows
from aia_jax.inference.search_index import ComputeRows, PhotoIndex, Update
from aia_jax.inference.searcher import PhotoSearch, SearchResult
from aia_jax.inference.sentence_search import SentenceSearch
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder, is_dual_encoder
from aia_jax.inference.vector_search import FAST_SLICE, SMALL, check_fast_search, small_vectors
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import OPEN, find_model, model_folder
from aia_jax.utils.paths import local_path


class IndexedPhotos:
    """The photos of a folder and, after `update`, their index.

    Args:
        folder: folder of the photos.
        search: the model.
        path: folder of the index; None: in the cache, one for each folder of photos and each model.
        fast: whether `find` uses `fast_search`. The first update with it then adds int8 vectors to the index.

    Attributes:
        names: names of the photos in the index, relative to `folder`.
        problems: `{name: problem}` of the photos that cannot be read, which no search finds.

    Raises InputError if `fast` needs a package, or the model is not a dual encoder.
    """

    def __init__(
        self, folder: Path, search: PhotoSearch | SentenceSearch, path: Path | None = None, *, fast: bool = False
    ):
        if fast and not isinstance(search, SentenceSearch):
            raise InputError("--fast is for a dual encoder; AMC is fast with a small --shortlist")
        if fast:
            check_fast_search()
        place = hashlib.sha256(f"{folder.resolve()} {search.digest}".encode(errors="surrogateescape")).hexdigest()[:12]
        self.path = path or cache_root("") / "indexes" / f"{folder.resolve().name}-{place}"
        self._folder, self._search, self._fast = folder, search, fast
        derived = {SMALL: lambda arrays: small_vectors(arrays["vectors"])} if fast else {}
        self._index = PhotoIndex(self.path, folder, search.digest, search.arrays, derived)

    def update(self, names: tuple[str, ...], num_workers: int = 0, rows: ComputeRows | None = None) -> Update:
        """Computes the rows of new and changed photos, and drops those of removed photos.

        `rows`: see `PhotoIndex.update`; None: `local_rows` with `num_workers` threads.
        """
        rows = rows or partial(local_rows, self._folder, model=self._search, num_workers=num_workers)
        update = self._index.update(names, rows)
        parts = self._index.parts(FAST_SLICE) if self._fast else self._index.parts()
        self.names, self._parts, self.problems = self._index.names, parts, update.problems
        return update

    def find(self, query: str, count: int, shortlist: int = 1000) -> SearchResult:
        """Finds the `count` best photos for a query. For `shortlist` and errors, see `PhotoSearch.search`."""
        if self._fast:
            return self._search.search(query, self._parts, count=count, fast=True)
        return self._search.search(query, self._parts, count=count, shortlist=shortlist)

    def scores(self, query: str) -> dict[str, float]:
        """Returns the score of each usable photo for a query, `{name: score}`. For errors, see `PhotoSearch.search`."""
        found, names = self.find(query, len(self.names), shortlist=0), list(self.names)
        return {names[row]: float(score) for row, score in zip(found.rows, found.scores, strict=True)}

    def search(self, query: str, count: int = 10) -> list[tuple[Path, float]]:
        """Returns the paths of the `count` best photos for a query and their scores, best first.

        Raises InputError if the query has no known word, there are no usable photos, or `count` is below 1.
        """
        if count < 1:
            raise InputError(f"count must be at least 1, not {count}")
        found = self.find(query, count)
        return [
            (self._folder / self.names[row], float(score)) for row, score in zip(found.rows, found.scores, strict=True)
        ]


def load_search(source: str | Path, annotator: str = "", batch_size: int = 32) -> PhotoSearch | SentenceSearch:
    """Loads a model that searches photos.

    Args:
        source: model folder, name of a shipped model, or the folder of a run: of a dual encoder or of AMC.
        annotator: only for AMC; see `PhotoSearch`.

    Raises InputError if the model cannot search photos.
    """
    folder = find_model(source)
    if not is_dual_encoder(folder):
        if model_folder(folder):
            raise InputError(f"{folder} labels photos, but cannot search them; name a dual encoder, such as {OPEN}")
        return PhotoSearch(folder, annotator, batch_size)
    if annotator:
        raise InputError("an annotator is for AMC; a dual encoder needs none")
    return SentenceSearch(TrainedDualEncoder.load(folder, batch_size))


def index_photos(folder: str | Path, model: str | Path) -> IndexedPhotos:
    """Loads a model and brings the index of a folder up to date, for `aia_jax.index`."""
    folder = local_path(folder)
    names = photo_names(folder)
    photos = IndexedPhotos(folder, load_search(model))
    photos.update(names)
    return photos
