"""Stored adversarial images: written and read again, budgets to the last bit, whose they are, decisions; files that would run something."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from rdc.data import Dataset
from rdc.errors import ConfigError, DataError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.adversarial_files import (
    AdversarialImages,
    adversarial_images,
    load_adversarial,
    save_adversarial,
)
from rdc.evaluation.verification import Verification, verify
from rdc.norm_balls import linf_bounds
from tests.evaluation_models import gaussian_classifier, labelled_by

EPS = "6/255"


@pytest.fixture(scope="module")
def classifier():
    return gaussian_classifier()


@pytest.fixture(scope="module")
def dataset(classifier):
    """Sixteen images of forty, the last two labelled wrongly: positions 24 to 39."""
    return labelled_by(classifier, 40, wrong=2).subset(slice(24, 40))


@pytest.fixture(scope="module")
def attacked(classifier, dataset, tmp_path_factory):
    settings = EvaluationSettings(
        model="g", dataset="blobs", n=16, batch=16, eps=EPS, steps=5, attacks="apgd-ce", sanity=0
    )
    return evaluate(classifier, dataset, settings, tmp_path_factory.mktemp("run") / "run", progress=False)


@pytest.fixture
def stored(attacked):
    return adversarial_images(attacked)


def test_both_forms_say_what_the_run_says(classifier, dataset, attacked, stored, tmp_path):
    for name in ("adv.npz", "deeper/adv.pt"):
        save_adversarial(tmp_path / name, stored)
        read = load_adversarial(tmp_path / name)
        assert torch.equal(read.x_adv, stored.x_adv) and read.x_adv.dtype == torch.float32
        assert (read.images is None) == name.endswith(".pt")
        found = verify(classifier, dataset, read, "linf", EPS, batch=7)
        assert found.holds and found.longest <= 6 / 255
        assert found.clean == attacked.figures.clean and found.robust.accuracy == attacked.figures.robust.accuracy
        assert [image.image for image in found.images] == list(range(24, 40))
        assert [image.standing for image in found.images] == [record.robust for record in attacked.records]
        assert Verification.from_json(found.to_json(), "verification") == found
    assert torch.equal(
        torch.load(tmp_path / "deeper" / "adv.pt", weights_only=True), stored.x_adv
    )  # RobustBench's tensor


def test_what_autoattack_saves_is_read(stored, tmp_path):
    torch.save({"adv_complete": stored.x_adv}, tmp_path / "aa.pt")
    np.savez(tmp_path / "plain.npz", x_adv=stored.x_adv.numpy().astype(">f4"))
    for name in ("aa.pt", "plain.npz"):
        read = load_adversarial(tmp_path / name)
        assert torch.equal(read.x_adv, stored.x_adv) and read.images is None and read.labels is None


def test_a_budget_ends_at_the_last_bit(classifier, dataset):
    """The outermost float32 numbers are allowed, the next ones are not; so it is with the pixel range."""
    pixels = dataset.pixels()
    lower, upper = linf_bounds(pixels, 6 / 255)
    row, place = 3, (pixels[3] < 0.5).nonzero()[0].tolist()
    for images, allowed in ((upper, 16), (lower, 16)):
        assert verify(classifier, dataset, AdversarialImages(images), "linf", EPS).allowed == allowed
    beyond = upper.clone()
    beyond[(row, *place)] = torch.nextafter(beyond[(row, *place)], torch.tensor(2.0))
    found = verify(classifier, dataset, AdversarialImages(beyond), "linf", EPS)
    assert (
        [image.image for image in found.images if not image.within] == [27] and found.allowed == 15 and not found.holds
    )
    assert found.images[3].belongs_to is None
    outside = pixels.clone()
    outside[(row, *place)] = -(2.0**-149)
    outside[5, 0, 0, 0] = torch.nan
    found = verify(classifier, dataset, AdversarialImages(outside), "linf", 1.0)
    assert [image.image for image in found.images if not image.in_range] == [27, 29] and found.longest is None
    assert found.images[5].distance is None and not found.images[5].within


def test_what_breaks_its_budget_breaks_no_image(classifier, dataset, attacked, stored):
    """Half the radius: images beyond it show nothing, and count as their clean ones do."""
    found = verify(classifier, dataset, stored, "linf", "3/255")
    assert any(not image.within and image.clean and not image.right for image in found.images)
    for image in found.images:
        assert image.standing == (image.clean and (image.right or not image.within))
    assert found.robust.accuracy > attacked.figures.robust.accuracy


def test_rows_in_another_order_are_found_out(classifier, dataset, stored):
    order = torch.arange(15, -1, -1)
    found = verify(classifier, dataset, AdversarialImages(stored.x_adv[order]), "linf", EPS)
    assert found.allowed == 0
    assert [image.belongs_to for image in found.images] == [int(dataset.indices[row]) for row in order]
    named = AdversarialImages(stored.x_adv[order], dataset.indices[order], dataset.labels[order])
    assert verify(classifier, dataset, named, "linf", EPS).holds


def test_what_does_not_fit_the_data(classifier, dataset, stored):
    def check(images, said, norm="linf", start=0):
        with pytest.raises(ConfigError, match=said):
            verify(classifier, dataset, images, norm, EPS, start=start)

    check(stored, "norm: expected one of linf, l2, l1", norm="flow")
    check(AdversarialImages(stored.x_adv[:, :, :7]), r"expected images \[1, 8, 8\]")
    check(AdversarialImages(stored.x_adv), "16 stored images from image 1 on", start=1)
    check(AdversarialImages(stored.x_adv, dataset.indices + 1), "image 40, which the file names")
    check(AdversarialImages(stored.x_adv, dataset.indices, 1 - dataset.labels.clamp(max=1)), "the file says that image")
    other = Dataset(dataset.images, dataset.labels, dataset.class_names, "others", "test")
    assert verify(classifier, other, AdversarialImages(stored.x_adv), "linf", EPS).holds


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_adv": np.zeros((2, 1, 8, 8))}, "expected float32 images"),
        ({"x_adv": np.zeros((2, 8, 8), np.float32)}, "expected float32 images"),
        ({"x_adv": np.zeros((0, 1, 8, 8), np.float32)}, "expected float32 images"),
        ({"x_adv": np.array([["a"]])}, "expected numbers"),
        ({"x_adv": np.zeros((2, 1, 8, 8), np.float32), "images": np.zeros(3, np.int64)}, "images: expected 2 integers"),
        (
            {"x_adv": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.float32)},
            "labels: expected 2 integers",
        ),
        ({"images": np.zeros(2, np.int64)}, "has no x_adv"),
        ({"x_adv": np.array([None], dtype=object)}, "x.npz"),
    ],
)
def test_arrays_that_are_no_adversarial_images(arrays, said, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said):
        load_adversarial(tmp_path / "x.npz")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    trap = str(tmp_path / "sprung")
    torch.save({"x_adv": Trap(trap)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap(trap)))
    np.savez(tmp_path / "c.npz", x_adv=np.array([Trap(trap)], dtype=object))
    torch.save([1, 2], tmp_path / "d.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "e.pt")
    (tmp_path / "f.pt").write_bytes(b"")
    for name in ("a.pt", "b.pt", "c.npz", "d.pt", "e.pt", "f.pt", "missing.npz"):
        with pytest.raises(DataError) as caught:
            load_adversarial(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(ConfigError, match=r"ends in \.npz or \.pt"):
        load_adversarial(tmp_path / "x.pkl")
    assert not os.path.exists(trap)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 1, 64, 64), }".ljust(117)
        + b"\n"
    )
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x_adv.npy", "w", force_zip64=True) as member,
    ):
        member.write(header)
        for _ in range(160):
            member.write(bytes(2**20))
    (tmp_path / "bomb.npz").write_bytes(packed.getvalue())
    with pytest.raises(DataError, match="bomb.npz"):
        load_adversarial(tmp_path / "bomb.npz")


def test_a_number_of_pixels_is_a_budget_too(classifier, dataset):
    """Three places changed, one of them in its last bit."""
    pixels = dataset.pixels()
    moved = pixels.clone()
    moved[:, :, 0, 0], moved[:, :, 3, 4] = 0.0, 1.0
    moved[:, :, 5, 5] = torch.nextafter(moved[:, :, 5, 5], torch.tensor(2.0))
    held, broken = (verify(classifier, dataset, AdversarialImages(moved), "l0", eps) for eps in ("3", "2"))
    assert held.holds and held.longest == 3 and not broken.holds
    with pytest.raises(ConfigError, match="whole one"):
        verify(classifier, dataset, AdversarialImages(moved), "l0", "2.5")
