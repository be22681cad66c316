"""Writes arrays to disk row by row, and reads only the rows that are indexed."""

import os
from pathlib import Path

import numpy as np

from aia_jax.utils.errors import InputError


def map_array(path: Path) -> np.ndarray:
    """Memory-maps the array `[M, ...]` of a `.npy` file. Refuses pickled Python objects.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a `.npy` file, is truncated, or holds Python objects or a single number.
    """
    try:
        array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # NumPy parses a header as a Python literal, which can raise many errors.
        raise InputError(f"{path} is not a .npy file, or is truncated: {error}") from None
    if not array.ndim:
        raise InputError(f"{path} holds a single number, not rows")
    return array


class MappedRows:
    """An array in a `.npy` file, or selected rows of it. Indexing the first axis reads only the indexed rows.

    Args:
        path: file of an array `[M, ...]`.
        rows: indices of the selected rows, in order; None: all M rows.
    """

    def __init__(self, path: str | Path, rows: np.ndarray | None = None):
        self.path = Path(path)
        self.rows = rows
        self._array = map_array(self.path)
        self.shape = (len(self._array) if rows is None else len(rows), *self._array.shape[1:])
        self.dtype = self._array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return self._array[index if self.rows is None else self.rows[index]]

    def __array__(self, dtype: np.typing.DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def take(self, rows: np.ndarray) -> "MappedRows":
        """Selects rows without reading them."""
        return MappedRows(self.path, rows if self.rows is None else self.rows[rows])


class RowWriter:
    """Context manager that writes an array `[N, ...]` to a `.npy` file row by row.

    On a full disk, writing raises an OSError. With a memory map, a full disk would kill the process.

    Args:
        shape, dtype: shape and dtype of one row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike):
        self._file = path.open("wb")
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._num_rows = 0
        self._write_header()

    def extend(self, rows: np.ndarray) -> None:
        """Appends M rows, `[M, ...]`."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._num_rows += len(rows)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        # NumPy pads headers, so the final header has the same length as the header of the empty array.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._num_rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
