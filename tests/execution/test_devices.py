import pytest
import torch

from rdc.errors import ConfigError
from rdc.execution.devices import chosen_device


@pytest.mark.parametrize(("cuda", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_and_nothing_are_the_same(monkeypatch, cuda, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert chosen_device(None) == chosen_device("auto") == torch.device(found)


def test_apples(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device("mps") == torch.device("mps") and chosen_device("auto").type != "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="mps asked for, .* Use --device cpu"):
        chosen_device("mps")


@pytest.mark.parametrize(("name", "meant"), [("gpu", "cuda"), ("CPU", "cpu"), ("cda", "cuda"), ("metal", "mps")])
def test_slips(name, meant):
    with pytest.raises(
        ConfigError, match=f"expected auto, cpu, cuda, cuda:N or mps; got '{name}' .did you mean '{meant}'"
    ):
        chosen_device(name)


@pytest.mark.parametrize("name", ["tpu:x", "meta", "xpu", "cuda:-1x", ""])
def test_what_is_no_device_of_ours(name):
    with pytest.raises(ConfigError, match="device: expected auto"):
        chosen_device(name)
