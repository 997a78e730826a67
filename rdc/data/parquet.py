"""Parquet files as Hugging Face's data sets have them: a column of encoded pictures, a column of labels. Needs pyarrow.

Source: Hugging Face, "datasets" documentation, "Image" and "ClassLabel" features; their names stand in the schema's metadata.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.data.arrays import check_name, class_labels
from rdc.data.dataset import Dataset
from rdc.data.pictures import EXPANSION, FLOOR, Form, stacked
from rdc.errors import DataError, one_line
from rdc.storage.json_files import parse_json
from rdc.storage.reading import Budget, reading, regular_file
from rdc.terminal.progress import bar

__all__ = ["load_parquet", "parquet_files"]

SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
IMAGES, LABELS = ("image", "img", "images"), ("label", "labels", "fine_label")
_UNSPLIT = "nothing tells train from test in it, so both are the same images. For splits: files train-*.parquet and test-*.parquet"
_ROWS = 256  # read at once
_MOST = 50_000_000  # rows
_LARGEST = 1 << 30  # bytes of one group of rows, unpacked


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or the .parquet files in the folder, in its ``data``, or in one folder below."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return next((found for depth in ("*", "data/*", "*/*") if (found := sorted(path.glob(f"{depth}.parquet")))), [])


def load_parquet(path: Path, split: str, form: Form | None = None, *, progress: bool = True) -> Dataset:
    """Read a ``.parquet`` file, or of a folder those whose names begin with the split's.

    The pictures' column is called ``image``, ``img`` or ``images`` (a struct with ``bytes``, or bytes), the labels' column ``label``,
    ``labels`` or ``fine_label`` (integers). Names of classes come from the schema's metadata. Pictures are PNG or JPEG.

    Args:
        path: the file or folder.
        split: ``"train"`` or ``"test"``; where there is no file of test images, that of validation.
        form: size and channels; None: as the pictures are.
        progress: draw a bar on stderr.

    Raises:
        DataError: pyarrow is missing, no such files, columns of another kind, or a picture that cannot be read.
    """
    parquet = _pyarrow(path)
    files, notices = _of_split(path, split)
    opened = []
    for file in files:
        regular_file(file, DataError, "a .parquet file")
        with reading(file, DataError, "a readable .parquet file"):
            opened.append((file, parquet.ParquetFile(file)))
    total = sum(one.metadata.num_rows for _, one in opened)
    budget = Budget(
        one_line(path, 400), sum(file.stat().st_size for file in files), DataError, floor=FLOOR, expansion=EXPANSION
    )
    if not 0 < total <= _MOST:
        raise DataError(f"{path}: {total:,} rows; expected 1 to {_MOST:,}")
    labels: list[Any] = []
    with bar(total=total, desc=f"{path.name}, {split}", enabled=progress and total > 2000) as line:

        def pictures() -> Iterator[tuple[str, Callable[[], bytes]]]:
            for file, one in opened:
                yield from _pictures(file, one, budget, labels, line)

        images, said = stacked(pictures(), total, form or Form(), budget)
    found, _ = class_labels(_integers(labels, path), total, f"{path}: labels")
    names = _names(files[0], opened[0][1]) or tuple(str(label) for label in range(int(found.max()) + 1))
    for name in names:
        check_name(name, str(path))
    title = path.stem if path.is_file() else path.name
    return Dataset(
        torch.from_numpy(images), torch.from_numpy(found), names, title, split, None, str(path), (*notices, *said)
    )


def _pyarrow(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{one_line(path, 400)}: .parquet files need the package pyarrow, which is not installed: pip install pyarrow"
        ) from error
    found: Any = parquet
    return found


def _of_split(path: Path, split: str) -> tuple[list[Path], list[str]]:
    files = parquet_files(path)
    if path.is_file() or not any(
        file.name.startswith(name) for file in files for names in SPLITS.values() for name in names
    ):
        return files, [_UNSPLIT]
    for name in SPLITS[split]:
        chosen = [file for file in files if file.stem == name or file.name.startswith(f"{name}-")]
        if chosen:
            return chosen, [] if name == split else [f"the {split} split is the files {name}-*"]
    has = one_line(", ".join(file.name for file in files), 300)
    raise DataError(f"{path}: no file of the {split} split ({split}-*.parquet); it has {has}")


def _pictures(
    file: Path, opened: Any, budget: Budget, labels: list[Any], line: Any
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Of every row its place and its picture; labels are put into the list as rows are reached."""
    names = set(opened.schema_arrow.names)
    columns = [next((name for name in wanted if name in names), None) for wanted in (IMAGES, LABELS)]
    if None in columns:
        raise DataError(
            f"{file}: expected a column {' or '.join(IMAGES)} and a column {' or '.join(LABELS)}; it has "
            f"{one_line(', '.join(sorted(names)), 200)}"
        )
    with reading(file, DataError, "a readable .parquet file"):
        for group in range(opened.metadata.num_row_groups):
            if (size := opened.metadata.row_group(group).total_byte_size) > max(_LARGEST, 0) or size < 0:
                raise DataError(f"{file}: a group of rows unpacks to {size:,} bytes; expected at most {_LARGEST:,}")
        row = 0
        for batch in opened.iter_batches(batch_size=_ROWS, columns=columns):
            values = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
            labels += values[columns[1]].to_pylist()
            for value in values[columns[0]]:
                yield f"{one_line(file, 400)}, row {row}", functools.partial(_bytes, value.as_py(), file, row)
                row += 1
                line.update()


def _bytes(value: Any, file: Path, row: int) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(
            f"{file}, row {row}: expected the bytes of a picture; got {'a path alone' if isinstance(value, dict) else type(value).__name__}"
        )
    return content


def _integers(labels: list[Any], path: Path) -> np.ndarray:
    bad = next((place for place, label in enumerate(labels) if type(label) is not int or not 0 <= label < 2**62), None)
    if bad is not None:
        raise DataError(f"{path}: label {one_line(repr(labels[bad]), 60)} of row {bad}; expected integers, 0 or more")
    return np.array(labels, dtype=np.int64)


def _names(file: Path, opened: Any) -> tuple[str, ...] | None:
    """Names of classes, if the schema's metadata have them."""
    metadata = opened.schema_arrow.metadata or {}
    text = metadata.get(b"huggingface")
    if not text:
        return None
    value: Any = parse_json(bytes(text), f"{one_line(file, 400)}, metadata", DataError)
    for key in ("info", "features"):
        value = value.get(key) if isinstance(value, dict) else None
    for key in LABELS:
        feature = value.get(key) if isinstance(value, dict) else None
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
