"""Reads labels from a file or a folder. Decides by the content which layout it has."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from aia_jax.data.importing.exports import read_json_labels, read_xml_labels
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import SPLIT_NAMES, LabelList, read_folders
from aia_jax.data.photo_files import PhotoFiles
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import list_files

_FILES = ("_classes.csv", "_annotations.coco.json", "metadata.jsonl", "metadata.csv", "labels.json")  # beside photos
_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".xlsx", ".parquet", ".yaml", ".yml")
_TOOLS = {".txt": "YOLO", ".xml": "Pascal VOC", ".json": "LabelMe"}  # tools with a file of labels for each photo
_INSTEAD = "export COCO's JSON or a table of classes from the tool instead"


def read_labels_of(path: Path, **table_options: Any) -> LabelList:
    """Reads labels from a table, from JSON or XML of another tool, or from a folder.

    Args:
        table_options: options of `read_table`. A command has a flag of the same name for each option.

    Raises:
        InputError: the labels cannot be read, or an option is given for something that is no table.
    """
    if path.is_dir():
        return _read_folder(path, table_options)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    start = head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]  # without byte-order marks
    if start not in (b"{", b"[", b"<") and path.suffix.lower() not in (".json", ".jsonl", ".ndjson", ".xml"):
        return read_table(path, **table_options)
    if start == b"<" or path.suffix.lower() == ".xml":
        _refuse_options(path, table_options)
        return read_xml_labels(path)
    names = ("photo_column", "label_column", "rows", "ignore_columns")
    _refuse_options(path, {name: value for name, value in table_options.items() if name not in names})
    return read_json_labels(path, **{name: table_options[name] for name in names if name in table_options})


def _refuse_options(path: Path, options: dict[str, Any]) -> None:
    if given := ", ".join(f"--{name}" for name, value in options.items() if value):
        raise InputError(f"{given} goes with a table; {path} is none")


def _read_folder(folder: Path, options: dict[str, Any]) -> LabelList:
    """Reads the files of labels in the folder, or in its folders of splits; else the names of its folders."""
    tops = PhotoFiles().subfolders(folder)
    splits = [top for top in tops if top.lower() in SPLIT_NAMES]
    files = [(top, name) for top in ("", *splits) for name in _FILES if (folder / top / name).is_file()]
    if not files:
        _refuse_options(folder, options)
        _refuse_layout(folder, tops)
        return read_folders(folder)
    lacking = [top for top in splits if files[0][0] and top not in dict(files)]
    if len(dict(files)) < len(files) or (not files[0][0] and len(files) > 1) or lacking:
        listed = ", ".join(str(Path(top, name)) for top, name in files) + "".join(f"; none in {top}" for top in lacking)
        raise InputError(f"{folder} holds {listed}; expected one file of labels in each split, or --labels FILE")
    rows, problems, understood = [], [], []
    for top, name in files:
        found = read_labels_of(folder / top / name, **options)
        below = Path(top, "data" if name == "labels.json" else "")  # FiftyOne's folder of photos
        for row in found.rows:
            split = SPLIT_NAMES.get(top.lower(), row.split)
            photo = f"{below}/{row.photo}" if below.parts else row.photo
            rows.append(dataclasses.replace(row, where=str(Path(top, row.where)), photo=photo, split=split))
        problems += [str(Path(top, problem)) for problem in found.problems]
        understood.append(found.understood)
    return LabelList(tuple(rows), "\n".join(understood), tuple(problems))


def _refuse_layout(folder: Path, tops: list[str]) -> None:
    """Raises InputError if folders are not labels: there are files that hold the labels."""
    beside = sorted(name for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES) and name[0] != ".")
    names = ("annotations", "labels", "ann")
    other = [top for top in tops if top.lower() in names and not PhotoFiles().names(folder / top)]
    photos = {Path(name).stem for name in PhotoFiles().names(folder)}
    for suffix, tool in _TOOLS.items():
        stems = {Path(name).stem for name in list_files(folder, (suffix,))}
        if photos and 2 * len(stems & photos) > len(photos):
            raise InputError(
                f"{folder} has a {suffix} file for each photo, as from {tool}, which is not read; {_INSTEAD}"
            )
    if beside or other:
        raise InputError(
            f"{folder} holds {(beside or other)[0]}. If it holds the labels, name the file in --labels, and the "
            "folder of the photos in --images. If the names of folders are the labels, move it to another place"
        )
