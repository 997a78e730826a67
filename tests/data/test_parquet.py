"""Parquet files as Hugging Face has them; without pyarrow one line says what is missing."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from rdc.data import load_dataset
from rdc.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rdc.data.DataNotice")


def encoded(value: int, kind: str = "png", size: tuple[int, int] = (6, 4)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (value, 0, 7)).save(made, kind)
    return made.getvalue()


def write(path, images, labels, names=None, columns=("image", "label")):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {columns[1]: {"names": names, "_type": "ClassLabel"}} if names else {}
    table = pyarrow.table({columns[0]: images, columns[1]: labels})
    text = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata({"huggingface": text}), path)


def structs(values):
    return [{"bytes": encoded(value), "path": None} for value in values]


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="need the package pyarrow, which is not installed: pip install pyarrow"):
        load_dataset(tmp_path, "train")


@pytest.mark.parametrize("below", ["", "data/", "default/"])
def test_splits_shards_and_names(tmp_path, below):
    for name, begin in (("train-00000-of-00002", 0), ("train-00001-of-00002", 300), ("validation-00000-of-00001", 5)):
        count = 300 if begin == 0 else 2
        values = [(begin + i) % 256 for i in range(count)]
        write(tmp_path / f"{below}{name}.parquet", structs(values), [v % 2 for v in values], ["cat", "dog"])
    train, test = (load_dataset(tmp_path, split) for split in ("train", "test"))
    assert train.images.shape == (302, 3, 4, 6) and train.class_names == ("cat", "dog")
    assert train.images[:, 0, 0, 0].tolist() == [i % 256 for i in range(302)] and int(train.images[0, 2, 0, 0]) == 7
    assert train.labels.tolist() == [i % 256 % 2 for i in range(302)]
    assert test.images[:, 0, 3, 5].tolist() == [5, 6] and test.notices == ("the test split is the files validation-*",)
    assert load_dataset(tmp_path, "train", size=(8, 8)).image_shape == (3, 8, 8)


def test_one_file_other_columns_no_names(tmp_path):
    write(tmp_path / "own.parquet", [encoded(1, "jpeg"), encoded(2)], [2, 0], columns=("img", "fine_label"))
    data = load_dataset(tmp_path / "own.parquet")
    assert data.class_names == ("0", "1", "2") and data.labels.tolist() == [2, 0] and data.name == "own"
    assert data.notices[0].startswith("nothing tells train from test")


def test_what_does_not_fit(tmp_path):
    path = tmp_path / "own.parquet"
    for images, labels, columns, message in (
        (structs([1, 2]), [0, None], ("image", "label"), "label None of row 1"),
        (structs([1, 2]), [0, -1], ("image", "label"), "label -1 of row 1"),
        (structs([1, 2]), ["a", "b"], ("image", "label"), "label 'a' of row 0"),
        (
            [{"bytes": None, "path": "a.png"}],
            [0],
            ("image", "label"),
            "row 0: expected the bytes of a picture; got a path alone",
        ),
        ([b"no picture"], [0], ("image", "label"), "row 0: not a PNG or JPEG"),
        ([1, 2], [0, 1], ("image", "label"), "expected the bytes of a picture; got int"),
        (structs([1]), [0], ("picture", "label"), "expected a column image or img or images"),
        ([encoded(1), encoded(2, size=(5, 5))], [0, 1], ("image", "label"), "expected pictures of one size"),
    ):
        write(path, images, labels, columns=columns)
        with pytest.raises(DataError, match=message):
            load_dataset(path)
    content = path.read_bytes()
    for damaged in (
        content[:-9],
        b"PAR1" + bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)) + b"PAR1",
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable .parquet"):
            load_dataset(path)
