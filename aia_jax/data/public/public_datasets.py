"""The four public data sets: what was published of each, and where its files are had.

Annotations come from git repositories, at fixed commits, so the id of each file in git is its published checksum. The
ids of the files of Corel-5k, ESP-Game and IAPR TC-12, of SSGRL's lists and of VG-500's vocabulary were compared with
copies at hand; that of SSGRL's index of labels was read from the repository alone. No checksum is published of Visual
Genome's archives: their sizes are what several downloaders have noted, and every photo is checked when it is unpacked.
"""

import dataclasses
from collections.abc import Mapping

_AUTHORS = (
    "https://raw.githubusercontent.com/parham1998/Enhancing-High-Vocabulary-IA-with-a-Novel-Attention-Based-Pooling"
    "/0fa0519ac9a176c79c335cd20814c7a372e3f59d/datasets"
)
_SSGRL = "https://raw.githubusercontent.com/HCPLab-SYSU/SSGRL/ea47ccb2cf55ff37c5a91fc5a6974bdbc9ab6679/data/VG"
_VISUAL_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that a server gives to anybody.

    Attributes:
        path: where it belongs, relative to the folder of the data set.
        url: where it is.
        git_blob: its id in git, see `download.git_blob_id`; "": none is known.
        num_bytes: its size as far as it is known; 0: it is not.
    """

    path: str
    url: str
    git_blob: str = ""
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    """What a data set holds and who has it.

    Attributes:
        name: a key of `annotations.FOLDERS`.
        num_images: by split.
        num_labels: in the vocabulary.
        labels_per_image: mean over both splits, to one decimal, from the table of the authors' README.
        annotations: the files of its annotations.
        kaggle: the data set on Kaggle that holds its photos; "": `archives` do.
        archives: zip files that hold its photos.
    """

    name: str
    num_images: Mapping[str, int]
    num_labels: int
    labels_per_image: float
    annotations: tuple[RemoteFile, ...]
    kaggle: str = ""
    archives: tuple[RemoteFile, ...] = ()


def _authors_files(folder: str, train: str, test: str) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(f"{split}.json", f"{_AUTHORS}/{folder}/{split}.json", git_blob)
        for split, git_blob in (("train", train), ("test", test))
    )


_DATASETS = (
    PublicDataset(
        name="corel5k",
        num_images={"train": 4500, "test": 499},
        num_labels=260,
        labels_per_image=3.4,
        annotations=_authors_files(
            "Corel-5k", "6f1f27a06457d09422fc61019b3eaca2ae26122a", "658cdf57e7f82df577e57aa5026264724cf48d34"
        ),
        kaggle="parhamsalar/corel5k",
    ),
    PublicDataset(
        name="espgame",
        num_images={"train": 18689, "test": 2081},
        num_labels=268,
        labels_per_image=4.7,
        annotations=_authors_files(
            "ESP-Game", "8399f37e095dc519b26fdf3dca38a46265c4be61", "93b3d2f5d0d16aadf96885bf2961bb74aea83590"
        ),
        kaggle="parhamsalar/espgame",
    ),
    PublicDataset(
        name="iaprtc12",
        num_images={"train": 17665, "test": 1962},
        num_labels=291,
        labels_per_image=5.7,
        annotations=_authors_files(
            "IAPR-TC-12", "7f9c7d7a389c5b224aee276d285ae622b4f263bd", "37e22566c44ae7b246ad291339987c0cc04af3a3"
        ),
        kaggle="parhamsalar/iaprtc12",
    ),
    PublicDataset(
        name="vg500",
        num_images={"train": 82904, "test": 10000},
        num_labels=500,
        labels_per_image=13.6,
        annotations=(
            *(
                RemoteFile(f"ssgrl/{name}", f"{_SSGRL}/{name}", git_blob)
                for name, git_blob in (
                    ("train_list_500.txt", "f71ca6653a197f2ce4b50aa72c326f72ece06860"),
                    ("test_list_500.txt", "fac3c14161b266634aa4952a99f3c9bc09d56e92"),
                    ("vg_category_500_labels_index.json", "a67255890d03cb7dddfd389a96433f252ca209c3"),
                )
            ),
            RemoteFile(
                "vg500_vocabulary.txt",
                f"{_AUTHORS}/VG-500/vg500_vocabulary.txt",
                "7207bd84699226c7925ff521f4e6bd5e1844b445",
            ),
        ),
        archives=(
            RemoteFile("downloads/images.zip", f"{_VISUAL_GENOME}/images.zip", num_bytes=9_731_705_982),
            RemoteFile("downloads/images2.zip", f"{_VISUAL_GENOME}/images2.zip", num_bytes=5_471_658_058),
        ),
    ),
)
PUBLIC_DATASETS = {dataset.name: dataset for dataset in _DATASETS}
