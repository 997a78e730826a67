"""``rdc.attack`` and ``rdc.evaluate`` take what people have: any model, any images, options by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rdc
from rdc.attacks import ThreatModel, apgd
from rdc.data import Dataset
from rdc.data.float_dataset import FloatDataset
from rdc.errors import ConfigError
from rdc.front.images import as_images
from rdc.norm_balls import distance

SHAPE, CLASSES = (1, 6, 6), 3


class Net(nn.Module):
    """A linear classifier with dropout, so that its mode matters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, 36, generator=generator))
        self.drop = nn.Dropout(0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.drop(pixels.flatten(1) - 0.5) @ self.weight.T


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def levels() -> torch.Tensor:
    """uint8 [12, 1, 6, 6]."""
    return torch.randint(0, 256, (12, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture
def labels(net: Net, levels: torch.Tensor) -> torch.Tensor:
    return net.eval()(levels / 255).argmax(1)


FAST: dict[str, Any] = {"steps": 4, "attacks": "pgd"}


def same(one: rdc.EvaluationResult, other: rdc.EvaluationResult) -> None:
    assert torch.equal(one.adversarial, other.adversarial) and one.images == other.images


class Pairs(torch.utils.data.Dataset):
    """What torchvision's data sets are: images and labels, one by one."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        if place >= len(self):
            raise IndexError(place)
        return self.images[place], int(self.labels[place])


def test_one_line_gives_what_the_attack_gives(net, levels, labels):
    x = levels / 255
    result = rdc.attack(net, x, labels, eps="8/255", steps=4, attacks="apgd-ce", seed=7)
    alone = apgd(net.eval(), x, labels, ThreatModel("linf", 8 / 255), seed=7, steps=4)
    assert torch.equal(result.adversarial, alone.x_adv) and result.accuracy == alone.accuracy
    assert result.clean_accuracy == 1 and torch.equal(result.clean, x)
    assert float(distance(result.adversarial, x, "linf").max()) <= 8 / 255
    low, high = result.interval
    assert 0 <= low <= result.accuracy <= high <= 1


def test_every_kind_of_images_is_the_same_images(net, levels, labels, tmp_path):
    from PIL import Image

    from rdc.data import save_npz

    x = levels / 255
    expected = rdc.attack(net, x, labels, **FAST)
    data = Dataset(levels, labels, ("a", "b", "c"), "mine", "test")
    save_npz(data, tmp_path / "mine.npz")
    pictures = [Image.fromarray(image[0].numpy()) for image in levels]
    for images, y in (
        (levels, labels),
        (levels.numpy(), labels.numpy()),
        (x.numpy(), labels.tolist()),
        (x.double(), labels[:, None]),
        (x[:, 0], labels.int()),
        (data, None),
        (Pairs(x, labels), None),
        (Pairs(pictures, labels), None),
        (torch.utils.data.DataLoader(Pairs(x, labels), batch_size=5), None),
        (str(tmp_path / "mine.npz"), None),
    ):
        same(rdc.attack(net, images, y, **FAST), expected)


def test_pixels_that_are_no_grey_levels_are_not_rounded(net, levels, labels):
    x = levels / 255 * 0.987
    found = as_images(x, labels)
    assert isinstance(found, FloatDataset) and torch.equal(found.pixels(), x) and torch.equal(found[3][0], x[3])
    assert torch.equal(found[2:5].pixels(), x[2:5]) and torch.equal(found.pixels([1, 4]), x[[1, 4]])
    assert type(as_images(levels / 255, labels)) is Dataset
    assert torch.equal(rdc.attack(net, x, labels, attacks="none").clean, x)


def test_pixels_off_by_one_unit_of_rounding_count_as_the_border(net, levels, labels):
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = (levels / 255).to(kind)
        off = x.clone()
        off[x == 1] = 1 + torch.finfo(kind).eps
        off[0, 0, 0, 0], x[0, 0, 0, 0] = 1 + torch.finfo(kind).eps, 1
        assert off.max() > 1 and torch.equal(as_images(off, labels).pixels(), as_images(x, labels).pixels())
        off[0, 0, 0, 0] = 1 + 4 * max(torch.finfo(kind).eps, 2**-20)
        with pytest.raises(rdc.RdcError, match=r"got values from .* to 1\.0*[1-9]"):
            as_images(off, labels)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types(net, levels, labels, kind):
    net = net.to(kind)
    result = rdc.attack(net, levels, labels, attacks="apgd-ce,square:queries=20", steps=4, eps=0.2)
    assert result.accuracy < 1 and result.adversarial.dtype == torch.float32
    assert next(net.parameters()).dtype == kind
    x = levels / 255
    alone = apgd(net.eval(), x, labels, ThreatModel("linf", 0.2), steps=4)
    assert alone.accuracy < 1 and alone.x_adv.dtype == torch.float32


def test_a_module_is_lent(net, levels, labels):
    net.train()
    one, other = (rdc.attack(net, levels, labels, **FAST) for _ in range(2))
    same(one, other)  # dropout is off
    assert net.training and net.drop.training and net.weight.requires_grad and net.weight.grad is None


def test_several_eps_give_a_result_each(net, levels, labels, tmp_path):
    results = rdc.attack(net, levels, labels, eps=["1/255", 8 / 255, 0.5], **FAST)
    assert [result.figures.attacks[0].eps for result in results] == [1 / 255, 8 / 255, 0.5]
    same(results[1], rdc.attack(net, levels, labels, **FAST))
    assert results[0].accuracy >= results[1].accuracy >= results[2].accuracy
    kept = rdc.evaluate(net, levels, labels, eps=(1 / 255, "8/255"), sanity=0, out=tmp_path / "runs", **FAST)
    assert [result.folder for result in kept] == [tmp_path / "runs" / f"eps-{k}-255" for k in (1, 8)]


def test_evaluate_keeps_a_folder_only_where_one_is_named(net, levels, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about: dict[str, Any] = {**FAST, "sanity": 2, "n": 8}
    without = rdc.evaluate(net, levels, labels, **about)
    assert without.folder is None and not list(tmp_path.iterdir()) and without.figures.sanity.n == 2
    out = tmp_path / "run"
    kept = rdc.evaluate(net, levels, labels, out=out, **about)
    same(kept, without)
    assert kept.folder == out and {"run.json", "report.html", "report.json", "results.jsonl"} <= {
        p.name for p in out.iterdir()
    }
    same(rdc.evaluate(net, levels, labels, out=out, **about), kept)  # goes on, that is: has nothing left to do
    with pytest.raises(ConfigError, match="seed"):
        rdc.evaluate(net, levels, labels, out=out, seed=1, **about)
    page = without.write_report(tmp_path / "later")
    assert page == tmp_path / "later" / "report.html" and page.stat().st_size


def test_attacks_by_name(net, levels, labels):
    suite = rdc.evaluate(net, levels, labels, attacks="autoattack", sanity=0, steps=2, n=4, eps="1/255")
    assert [attack.name.partition(":")[0] for attack in suite.figures.attacks] == [
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]
    adaptive = rdc.attack(
        net, levels, labels, attacks="adaptive,pgd", steps=2, n=4
    )  # without what this model does not offer
    assert "lagrange" not in {attack.name for attack in adaptive.figures.attacks}
    assert (
        rdc.attack(net, levels, labels, attacks=("pgd", "square:queries=5"), steps=2).figures.attacks[1].name
        == "square:queries=5"
    )
    with pytest.raises(ConfigError, match="lagrange needs a defence"):
        rdc.attack(net, levels, labels, attacks="lagrange")
    assert rdc.attack(net, levels, labels, attacks="none").accuracy == 1
    assert {"autoattack", "adaptive"} <= set(rdc.attacks.SUITES)


def test_other_norms_and_fresh_noise(net, levels, labels):
    for norm, eps in (("l2", 0.5), ("l1", 5.0)):
        result = rdc.attack(net, levels, labels, norm=norm, eps=eps, steps=4, attacks="apgd-ce")
        assert float(distance(result.adversarial, levels / 255, norm).max()) <= eps
    fresh = rdc.attack(net, levels, labels, noise="fresh", eot=2, resubmissions=3, **FAST)
    assert fresh.figures.robust.worst_of == 3


def test_models_by_name():
    data = rdc.load_dataset("fashion-mnist-sample")[:2]
    result = rdc.attack("fashion-mnist-standard", data, steps=1, attacks="pgd", device="cpu")
    assert result.class_names == data.class_names and result.figures.model == "fashion-mnist-standard"
    assert (
        rdc.attack("fashion-mnist-standard", data.pixels(), data.labels, attacks="none").class_names == data.class_names
    )


def test_a_result_says_what_it_is(net, levels, labels):
    result = rdc.attack(net, levels, labels, eps=8 / 255, class_names=["<b>", "b", "c"], **FAST)
    share = f"{100 * result.accuracy:.1f} %"
    assert re.fullmatch(
        rf"<Net on images: robust {share} \[.*\] at l∞ 8/255, clean 100.0 % \[.*\], 12 images>", repr(result)
    )
    assert share in result.summary() and "95 % interval" in result.summary() and len(repr(result)) < 160
    page = result._repr_html_()
    assert share in page and "<table>" in page and "&lt;Net" in page and "<b>" not in page
    assert "robust" not in repr(rdc.attack(net, levels, labels, attacks="none"))


def test_image_ids_fix_the_random_starts(net, levels, labels):
    about: dict[str, Any] = {"attacks": "pgd:restarts=2", "steps": 2, "eps": 0.01}
    both = rdc.attack(net, levels, labels, **about)
    part = rdc.attack(net, levels[4:], labels[4:], image_ids=range(4, 12), **about)
    assert torch.equal(part.adversarial, both.adversarial[4:])
    assert not torch.equal(rdc.attack(net, levels[4:], labels[4:], **about).adversarial, part.adversarial)
    assert torch.equal(rdc.attack(net, levels, labels, n=4, **about).adversarial, both.adversarial[:4])


IMAGES, Y = np.zeros((2, 1, 6, 6), np.uint8), np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (IMAGES.astype(np.int32), Y, {}, r"uint8, 0..255, or floats in .0, 1.; got int32"),
        (IMAGES + np.float32(1.5), Y, {}, r"values from 1.5 to 1.5; undo the normalisation"),
        (np.full((2, 1, 6, 6), np.nan), Y, {}, "got NaN or infinity"),
        (np.zeros((2, 6, 6, 5)), Y, {}, "not image shapes"),
        (np.zeros((6, 6)), Y, {}, "not image shapes"),
        (IMAGES, None, {}, "images without labels"),
        (IMAGES, Y[:1], {}, r"must be integers .2., one per image"),
        (IMAGES, Y - 1, {}, "labels must be 0 or more; got -1"),
        (IMAGES, Y.astype(float), {}, "got float64"),
        (IMAGES, [["a"], ["b"]], {}, "expected images and labels as arrays"),
        (object(), None, {}, "a torch Dataset or a DataLoader; got <object"),
        ([(IMAGES[0], 0), 3], None, {}, "item 1: expected a pair of image and label; got 3"),
        ("fashion-mnist-sample", Y, {}, "has its labels; expected none beside it"),
        (IMAGES, Y, {"n": 3}, "an integer from 1 to 2"),
        (IMAGES, Y, {"image_ids": [1, 1]}, "one of them twice"),
        (IMAGES, Y, {"image_ids": [1]}, "2 different integers"),
        (IMAGES, Y + 2, {"class_names": ["a", "b"]}, "labels must be in 0..1"),
        (IMAGES, Y, {"device": "cpu"}, "it computes where it is"),
        (IMAGES, Y, {"eps": "eight"}, "expected a budget such as '8/255'"),
        (IMAGES, Y, {"norm": "linv"}, "norm: expected one of"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(net, x, y, options, words):
    with pytest.raises(rdc.RdcError, match=words) as raised:
        rdc.attack(net, x, y, **options)
    assert "\n" not in str(raised.value)


def test_a_misspelt_option_is_named(net):
    with pytest.raises(TypeError, match=r"attack\(\) got an unexpected keyword argument 'step'. Did you mean 'steps'?"):
        rdc.attack(net, IMAGES, Y, step=3)
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'qqq'; it has attacks, norm"):
        rdc.evaluate(net, IMAGES, Y, qqq=3)
