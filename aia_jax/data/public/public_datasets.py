"""Lists the published numbers of images and labels, and the download addresses, of the four public data sets.

Annotations come from git repositories at fixed commits, so the git id of each file is its published checksum. The ids
were compared with local copies of the files, except the id of SSGRL's label index. Visual Genome's archives have no
published checksum. Their sizes below are those that several users reported. Every photo is checked when it is unpacked.
"""

import dataclasses
from collections.abc import Mapping

from aia_jax.data.annotation.annotations import FOLDERS, SPLITS

_AUTHORS = (
    "https://raw.githubusercontent.com/parham1998/Enhancing-High-Vocabulary-IA-with-a-Novel-Attention-Based-Pooling"
    "/0fa0519ac9a176c79c335cd20814c7a372e3f59d/datasets"
)
_SSGRL = "https://raw.githubusercontent.com/HCPLab-SYSU/SSGRL/ea47ccb2cf55ff37c5a91fc5a6974bdbc9ab6679/data/VG"
_VISUAL_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        path: destination, relative to the folder of the data set.
        url: address of the file.
        git_blob: id of the file in git, see `download.git_blob_id`; "": unknown.
        num_bytes: size of the file; 0: unknown.
    """

    path: str
    url: str
    git_blob: str = ""
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    """The published numbers of a data set, and the sources of its files.

    Attributes:
        name: a key of `annotations.FOLDERS`.
        num_images: number of images in each split.
        num_labels: size of the vocabulary.
        labels_per_image: mean over both splits, rounded to one decimal. Source: README of the reference implementation.
        annotations: annotation files to download.
        kaggle: "owner/name" of the data set on Kaggle that has the photos; "" if the photos are in `archives`.
        archives: zip files with the photos.
    """

    name: str
    num_images: Mapping[str, int]
    num_labels: int
    labels_per_image: float
    annotations: tuple[RemoteFile, ...]
    kaggle: str = ""
    archives: tuple[RemoteFile, ...] = ()


def _file(path: str, source: str, git_blob: str = "", num_bytes: int = 0) -> RemoteFile:
    """Returns the file with the destination `path`. `source` is the address of the folder that has the file."""
    return RemoteFile(path, f"{source}/{path.rpartition('/')[2]}", git_blob, num_bytes)


def _on_kaggle(name: str, git_blobs: tuple[str, str], **facts: object) -> PublicDataset:
    blobs = zip(SPLITS, git_blobs, strict=True)
    annotations = tuple(_file(f"{split}.json", f"{_AUTHORS}/{FOLDERS[name]}", blob) for split, blob in blobs)
    return PublicDataset(name, annotations=annotations, kaggle=f"parhamsalar/{name}", **facts)


_DATASETS = (
    _on_kaggle(
        "corel5k",
        ("6f1f27a06457d09422fc61019b3eaca2ae26122a", "658cdf57e7f82df577e57aa5026264724cf48d34"),
        num_images={"train": 4500, "test": 499},
        num_labels=260,
        labels_per_image=3.4,
    ),
    _on_kaggle(
        "espgame",
        ("8399f37e095dc519b26fdf3dca38a46265c4be61", "93b3d2f5d0d16aadf96885bf2961bb74aea83590"),
        num_images={"train": 18689, "test": 2081},
        num_labels=268,
        labels_per_image=4.7,
    ),
    _on_kaggle(
        "iaprtc12",
        ("7f9c7d7a389c5b224aee276d285ae622b4f263bd", "37e22566c44ae7b246ad291339987c0cc04af3a3"),
        num_images={"train": 17665, "test": 1962},
        num_labels=291,
        labels_per_image=5.7,
    ),
    PublicDataset(
        "vg500",
        num_images={"train": 82904, "test": 10000},
        num_labels=500,
        labels_per_image=13.6,
        annotations=(
            _file("ssgrl/train_list_500.txt", _SSGRL, "f71ca6653a197f2ce4b50aa72c326f72ece06860"),
            _file("ssgrl/test_list_500.txt", _SSGRL, "fac3c14161b266634aa4952a99f3c9bc09d56e92"),
            _file("ssgrl/vg_category_500_labels_index.json", _SSGRL, "a67255890d03cb7dddfd389a96433f252ca209c3"),
            _file("vg500_vocabulary.txt", f"{_AUTHORS}/VG-500", "7207bd84699226c7925ff521f4e6bd5e1844b445"),
        ),
        archives=(
            _file("downloads/images.zip", _VISUAL_GENOME, num_bytes=9_731_705_982),
            _file("downloads/images2.zip", _VISUAL_GENOME, num_bytes=5_471_658_058),
        ),
    ),
)
PUBLIC_DATASETS = {dataset.name: dataset for dataset in _DATASETS}
