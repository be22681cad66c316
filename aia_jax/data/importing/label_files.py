"""Reads labels from a file or a folder. Decides which layout it has."""

from pathlib import Path
from typing import Any

from aia_jax.data.importing.coco import read_coco
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import LabelList, read_folders
from aia_jax.utils.errors import InputError


def read_labels_of(path: Path, **table_options: Any) -> LabelList:
    """Reads labels from a table, COCO's JSON or a folder for each label.

    Args:
        table_options: options of `read_table`. A command has a flag of the same name for each option.

    Raises:
        InputError: the labels cannot be read, or an option is given for something that is no table.
    """
    if not path.is_dir() and path.suffix.lower() != ".json":
        return read_table(path, **table_options)
    if given := ", ".join(f"--{name}" for name, value in table_options.items() if value):
        raise InputError(f"{given} goes with a table; {path} is none")
    return read_folders(path) if path.is_dir() else read_coco(path)
