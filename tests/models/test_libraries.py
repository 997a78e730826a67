"""Classifiers of timm, torchvision and RobustBench by name: stand-ins for the libraries everywhere, the real ones where they are."""

from __future__ import annotations

import enum
import functools
import importlib
import json
import os
import pickle
import sys
import types

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rdc
from rdc.cli import main
from rdc.errors import CheckpointError, ConfigError
from tests.tolerances import FLOAT32_SUM

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
RAN = []


def ran():
    RAN.append("code")


class Evil:
    def __reduce__(self):
        return ran, ()


class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.first, self.last = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, num_classes)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).mean((2, 3)))


def module(monkeypatch, name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    parent, _, last = name.rpartition(".")
    if parent:
        vars(sys.modules[parent])[last] = made
    return made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's cache of downloads, with the weights of one model in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    torch.save(Net().state_dict(), folder / "net-0.pth")
    return folder


def fetched(name):
    print("library: fetching", name)  # on stdout, as some do
    path = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    if not os.path.isfile(path):
        raise OSError("no connection")
    return torch.load(path, weights_only=False)  # as some do


@pytest.fixture
def timm(monkeypatch, hub):
    cfg = {"net": "net-0.pth", "elsewhere": "net-1.pth"}

    def create_model(name, pretrained=False, **settings):
        net = Net(**settings)
        if pretrained:
            net.load_state_dict(fetched(cfg[name.partition(".")[0]]))
        return net

    root = module(
        monkeypatch,
        "timm",
        __version__="1.0",
        create_model=create_model,
        is_model=lambda name: name.partition(".")[0] in ("net", "elsewhere", "bare"),
        list_models=lambda: ["net", "elsewhere", "bare"],
        list_pretrained=lambda pattern: [pattern.replace("*", "tag_in1k")],
        get_pretrained_cfg=lambda name: {"url": f"https://x/{cfg[name.partition('.')[0]]}"} if name != "bare" else None,
    )
    about = {"input_size": (3, 12, 10), "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    info = types.SimpleNamespace(index_to_description=lambda number: ["crane", "cat", "crane", "dog"][number])
    module(
        monkeypatch,
        "timm.data",
        resolve_model_data_config=lambda model: about,
        infer_imagenet_subset=lambda model: "imagenet-1k",
        ImageNetInfo=lambda subset: info,
    )
    return root


@pytest.fixture
def torchvision(monkeypatch, hub):
    transforms = functools.partial(
        types.SimpleNamespace, crop_size=[14], mean=MEAN, std=STD, interpolation="InterpolationMode.BILINEAR"
    )

    class Weights(enum.Enum):
        V1 = "net-0.pth"
        V2 = "net-1.pth"

        @property
        def url(self):
            return f"https://x/{self.value}"

        @property
        def meta(self):
            return {"categories": ["crane", "cat", "crane", "dog"]}

        @property
        def transforms(self):
            return transforms

    Weights.DEFAULT = Weights.V1

    def get_model(name, weights=None, progress=True, **settings):
        net = Net(**settings)
        if weights is not None:
            net.load_state_dict(fetched(weights.value))
        return net

    module(monkeypatch, "torchvision")
    return module(
        monkeypatch,
        "torchvision.models",
        get_model=get_model,
        list_models=lambda module: ["net"],
        get_model_weights=lambda name: Weights,
    )


class Kind(enum.Enum):
    Linf = "Linf"
    L2 = "L2"
    cifar10 = "cifar10"
    imagenet = "imagenet"


@pytest.fixture
def robustbench(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    zoo = {
        Kind.cifar10: {Kind.Linf: {"Tiny": {}, "Other": {}}, Kind.L2: {"Other": {}}},
        Kind.imagenet: {Kind.Linf: {"Big": {}}},
    }

    def load_model(model_name, model_dir, dataset, threat_model):
        print("Downloading")
        net = Net(10 if dataset == "cifar10" else 1000)
        path = os.path.join(model_dir, dataset, threat_model, f"{model_name}.pt")
        if not os.path.isfile(path):
            raise OSError("no connection")
        net.load_state_dict(torch.load(path, map_location="cpu"))  # as it does: torch decides what may be in there
        return net.eval()

    steps = [types.SimpleNamespace(size=256), types.SimpleNamespace(size=(24, 24)), object()]
    module(monkeypatch, "robustbench")
    module(monkeypatch, "robustbench.utils", load_model=load_model)
    module(monkeypatch, "robustbench.model_zoo", model_dicts=zoo)
    module(monkeypatch, "robustbench.model_zoo.enums", BenchmarkDataset=Kind, ThreatModel=Kind)
    module(
        monkeypatch,
        "robustbench.data",
        get_preprocessing=lambda *given: types.SimpleNamespace(transforms=steps),
    )
    for data, threat, name, count in (("cifar10", "Linf", "Tiny", 10), ("imagenet", "Linf", "Big", 1000)):
        folder = tmp_path / "models" / data / threat
        folder.mkdir(parents=True)
        torch.manual_seed(3)
        torch.save(Net(count).state_dict(), folder / f"{name}.pt")
    return tmp_path / "models"


def by_hand(net, pixels):
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (MEAN, STD))
    return net.eval()((pixels - mean) / std)


def stored(path, count=4):
    net = Net(count)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


@pytest.mark.parametrize(("prefix", "size"), [("timm", (12, 10)), ("torchvision", (14, 14))])
@torch.no_grad()
def test_normalisation_size_and_names_are_the_librarys(request, prefix, size, hub, capsys):
    request.getfixturevalue(prefix)
    model = rdc.load(f"{prefix}:net", noise="fresh")
    assert model.image_shape == (3, *size) and model.num_classes == 4
    assert model.class_names == ("crane (0)", "cat", "crane (2)", "dog")
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(pixels), by_hand(stored(hub / "net-0.pth"), pixels))
    said = capsys.readouterr()
    assert said.out == "" and "library: fetching" in said.err and "not here" not in said.err  # it was in the cache
    assert model.describe()["head"] == f"{prefix}:net"


@pytest.mark.parametrize("prefix", ["timm", "torchvision"])
def test_other_images_are_resized_and_gradients_go_through(request, prefix, hub):
    request.getfixturevalue(prefix)
    model = rdc.load(f"{prefix}:net,image=3x21x30")
    assert model.image_shape == (3, 21, 30)
    pixels = torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    size, mode = ((12, 10), "bicubic") if prefix == "timm" else ((14, 14), "bilinear")
    small = nn.functional.interpolate(pixels, size, mode=mode, antialias=True)
    expected = by_hand(stored(hub / "net-0.pth"), small)
    assert (model(pixels) - expected).abs().max() < FLOAT32_SUM
    (gradient,) = torch.autograd.grad(model(pixels)[:, 0].sum(), pixels)
    (wanted,) = torch.autograd.grad(expected[:, 0].sum(), pixels)
    assert (gradient - wanted).abs().max() < FLOAT32_SUM and wanted.abs().max() > 0


@pytest.mark.parametrize("prefix", ["timm", "torchvision"])
@torch.no_grad()
def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(request, prefix):
    request.getfixturevalue(prefix)
    before = torch.random.get_rng_state()
    one, two = (rdc.load(f"{prefix}:net,weights=none,classes=6") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pixels = torch.rand(1, *one.image_shape)
    assert one.num_classes == 6 and torch.equal(one(pixels), two(pixels)) and one.class_names[0] == "0"


@pytest.mark.parametrize("prefix", ["timm", "torchvision"])
@pytest.mark.parametrize("form", ["safetensors", "pth", "training"])
@torch.no_grad()
def test_weights_of_a_file(request, prefix, form, tmp_path):
    request.getfixturevalue(prefix)
    net = Net(5)
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    if form == "safetensors":
        save_file(net.state_dict(), path)
    elif form == "pth":
        torch.save(net.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": w for name, w in net.state_dict().items()}}, path)
    model = rdc.load(f"{prefix}:net,weights={path},classes=5")
    pixels = torch.rand(2, *model.image_shape)
    assert torch.equal(model(pixels), by_hand(net, pixels))
    with pytest.raises(CheckpointError, match="For another number of classes say classes=K"):
        rdc.load(f"{prefix}:net,weights={path}")


def test_a_file_that_asks_for_code_runs_none(timm, torchvision, robustbench, hub, tmp_path):
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"a": Evil()}, file)
    for place in (hub / "net-0.pth", robustbench / "cifar10" / "Linf" / "Tiny.pt"):
        torch.save({"first.weight": torch.zeros(1), "code": Evil()}, place)
    RAN.clear()
    for name in ("timm:net", "torchvision:net", "robustbench:Tiny:Linf"):
        with pytest.raises(CheckpointError, match="asks for more than tensors, which is not read here") as caught:
            rdc.load(name)
        assert "\n" not in str(caught.value)
    for prefix in ("timm", "torchvision"):
        with pytest.raises(CheckpointError):
            rdc.load(f"{prefix}:net,weights={tmp_path / 'evil.pth'}")
    assert not RAN


def test_torchs_own_switch_stays_as_it_was(robustbench, monkeypatch):
    name, other = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    monkeypatch.setenv(name, "1")
    torch.save({"code": Evil()}, robustbench / "cifar10" / "Linf" / "Tiny.pt")
    RAN.clear()
    with pytest.raises(CheckpointError):
        rdc.load("robustbench:Tiny:Linf")
    assert not RAN and os.environ[name] == "1" and other not in os.environ


@torch.no_grad()
def test_a_model_of_robustbench(robustbench, capsys):
    model = rdc.load("robustbench:Tiny:Linf")
    assert model.image_shape == (3, 32, 32) and model.class_names[3] == "cat"
    pixels = torch.rand(2, 3, 32, 32)
    expected = stored(robustbench / "cifar10" / "Linf" / "Tiny.pt", 10).eval()(pixels)  # it normalises pixels itself
    assert torch.equal(model(pixels), expected)
    assert "not here" not in (said := capsys.readouterr()).err and said.out == ""
    big = rdc.load(f"robustbench:Big:Linf,data=imagenet,folder={robustbench}")
    assert big.image_shape == (3, 24, 24) and big.num_classes == 1000


def test_what_is_fetched_is_said(timm, torchvision, robustbench, tmp_path, capsys):
    for name in ("timm:elsewhere", "torchvision:net,weights=V2", f"robustbench:Other:L2,folder={tmp_path / 'empty'}"):
        with pytest.raises(CheckpointError, match=r"OSError: no connection\)\. Without a connection"):
            rdc.load(name)
        assert "its weights are not here; fetched from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:nett", "timm 1.0 has no such model"),
        ("timm:net.nope", "timm has no such weights; it has net.tag_in1k"),
        ("timm:net,weights=a", "expected none or a file"),
        ("timm:net,weights=a.pth", "a.pth: no such file"),
        ("timm:net,classes=3", "expected with weights=FILE or weights=none"),
        ("timm:net,weights=none,classes=1", "classes: expected an integer from 2"),
        ("timm:net,image=8x8", "image: expected CxHxW"),
        ("timm:net,image=1x8x8", "image: expected 3 channels"),
        ("timm:net,size=8", "expected timm:NAME with some of weights=..., classes=..., image=..."),
        ("timm:bare", "weights=none for random ones"),
        ("torchvision:mesh", "torchvision has no such classifier"),
        ("torchvision:net,weights=V9", "torchvision:net has V1, V2.; got V9"),
        ("torchvision:net,classes=3", "expected with weights=FILE or weights=none"),
        ("robustbench:Tiny", "expected robustbench:NAME:THREAT, THREAT one of Linf, L2 for cifar10"),
        ("robustbench:Tiny:linf", "THREAT one of Linf"),
        ("robustbench:Tinny:Linf", "no such model for Linf, data=cifar10 .did you mean 'Tiny'"),
        ("robustbench:Tiny:L2", "it is there for Linf, data=cifar10"),
        ("robustbench:Tiny:Linf,data=mnist", "data: expected cifar10, cifar100, imagenet; got mnist"),
    ],
)
def test_what_does_not_fit_is_one_line(timm, torchvision, robustbench, name, words, capsys):
    with pytest.raises(ConfigError, match=words):
        rdc.load(name)
    assert main(["evaluate", "--model", name, "--data", "fashion-mnist-sample", "--quiet"]) == 2
    own = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("library: ")]
    assert len(own) == 1 and own[0].startswith("rdc: error: ")


@pytest.mark.parametrize("settings", [{"lm": "paper-v2"}, {"levels": "edm"}])
def test_settings_of_a_diffusion_classifier_are_refused(timm, settings):
    with pytest.raises(ConfigError, match=r"a discriminative network \(timm\) has no"):
        rdc.load("timm:net", **settings)


@pytest.mark.parametrize("name", ["timm", "torchvision", "robustbench"])
def test_without_the_library_one_line_says_what_to_install(name, monkeypatch, capsys):
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["classify", "--model", f"{name}:resnet18:Linf", "a.png"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"rdc: error: {name} is not installed")
        and f"pip install '{name}'" in said
        and said.count("\n") == 1
    )


def test_a_library_that_does_not_start_is_named(monkeypatch, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import a_package_that_is_not_there.part")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ConfigError, match="timm is installed, but not the a_package_that_is_not_there that it needs"):
        rdc.load("timm:net")
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"cannot be imported \(RuntimeError: operator"):
        rdc.load("timm:net")


def test_evaluate_attack_compare_and_costs(robustbench, tmp_path, capsys):
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    numpy.savez(tmp_path / "d.npz", images=images.numpy(), labels=numpy.arange(6))
    data = ["--data", str(tmp_path / "d.npz")]
    common = [*data, "--n", "6", "--steps", "2", "--sanity", "0", "--quiet"]
    for run, name in (("a", "robustbench:Tiny:Linf"), ("b", f"robustbench:Tiny:Linf,folder={robustbench}")):
        assert main(["evaluate", "--model", name, *common, "--out", str(tmp_path / run)]) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["model"] == "robustbench:Tiny:Linf" and report["classifier"]["head"] == "robustbench:Tiny:Linf"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) in (0, 1)
    costs = ["bench", "cost", "--model", "robustbench:Tiny:Linf@label=tiny", *data, "--batch", "1", "--rounds", "1"]
    assert main([*costs, "--memory", "off", "--quiet", "--json"]) == 0
    attacked = rdc.attack(
        rdc.load("robustbench:Tiny:Linf"), images.float() / 255, torch.arange(6), eps=8 / 255, steps=2
    )
    assert (attacked.adversarial - images.float() / 255).abs().max() <= 8 / 255 + FLOAT32_SUM


# --- the real libraries, where they are -------------------------------------------------------------------------------
def real(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} is not here, or not for this torch: {error}")


@pytest.mark.slow
@torch.no_grad()
def test_real_timm(tmp_path):
    library = real("timm")
    name = "test_vit.r160_in1k"
    model = rdc.load(f"timm:{name},weights=none")
    net = library.create_model(name, pretrained=False).eval()
    net.load_state_dict(model.model.model.state_dict())
    about = net.pretrained_cfg
    assert model.image_shape == tuple(about["input_size"]) and model.num_classes == 1000
    pixels = torch.rand(1, *model.image_shape)
    mean, std = (torch.tensor(about[word]).reshape(1, 3, 1, 1) for word in ("mean", "std"))
    assert torch.equal(model(pixels), net((pixels - mean) / std))
    save_file(library.create_model(name, num_classes=7).state_dict(), tmp_path / "a.safetensors")
    assert rdc.load(f"timm:{name},weights={tmp_path / 'a.safetensors'},classes=7").num_classes == 7


@pytest.mark.slow
@torch.no_grad()
def test_real_timm_reads_weights_and_names(tmp_path, monkeypatch, capsys):
    library, cache = real("timm"), real("huggingface_hub.constants")
    monkeypatch.setattr(cache, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    cfg = library.get_pretrained_cfg("resnet18.a1_in1k")
    net = library.create_model("resnet18").eval()
    save_file(net.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model = rdc.load("timm:resnet18.a1_in1k")
    assert capsys.readouterr().err == "" and model.class_names[3].startswith("tiger shark")
    pixels = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (cfg.mean, cfg.std))
    assert torch.equal(model(pixels), net((pixels - mean) / std))


@pytest.mark.slow
@torch.no_grad()
def test_real_torchvision(tmp_path, monkeypatch, capsys):
    models = real("torchvision.models")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    entry = models.get_model_weights("squeezenet1_1").DEFAULT
    net = models.squeezenet1_1().eval()
    torch.save(net.state_dict(), folder / os.path.basename(entry.url))
    model = rdc.load("torchvision:squeezenet1_1")
    assert capsys.readouterr().err == ""
    transforms = entry.transforms()
    pixels = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (transforms.mean, transforms.std))
    assert torch.equal(model(pixels), net((pixels - mean) / std))
    names = entry.meta["categories"]
    assert model.class_names[3] == names[3] and len(set(model.class_names)) == 1000
    for name in models.list_models(module=models):
        assert models.get_model_weights(name).DEFAULT.transforms().crop_size  # every classifier of it says its size


@pytest.mark.slow
@torch.no_grad()
def test_real_robustbench(tmp_path):
    real("robustbench.utils")
    zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    kinds = importlib.import_module("robustbench.model_zoo.enums")
    entry = zoo[kinds.BenchmarkDataset.cifar_10][kinds.ThreatModel.Linf]["Addepalli2022Efficient_RN18"]
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    net = entry["model"]().eval()
    torch.save(net.state_dict(), folder / "Addepalli2022Efficient_RN18.pt")
    model = rdc.load(f"robustbench:Addepalli2022Efficient_RN18:Linf,folder={tmp_path}")
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(pixels), net(pixels))
    torch.save({**net.state_dict(), "code": Evil()}, folder / "Addepalli2022Efficient_RN18.pt")
    RAN.clear()
    with pytest.raises(CheckpointError, match="more than tensors"):
        rdc.load(f"robustbench:Addepalli2022Efficient_RN18:Linf,folder={tmp_path}")
    assert not RAN
