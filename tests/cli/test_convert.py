import json

import torch
from safetensors.torch import save_file

from rdc.cli import main
from rdc.models.checkpoints import load_model
from rdc.networks.unet import SongUNet
from tests.tiny_models import randomize


def test_a_state_dict_becomes_a_checkpoint(tmp_path, capsys):
    net = randomize(
        SongUNet(8, 1, 1, label_dim=3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    ).eval()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    status = main(
        ["convert", str(tmp_path / "weights.safetensors"), str(tmp_path / "made"), "--class-names", "a,b,c", "--json"]
    )
    summary = json.loads(capsys.readouterr().out)
    network, config, info = load_model(tmp_path / "made")
    assert status == 0 and config["num_classes"] == 3 and info["class_names"] == ["a", "b", "c"]
    assert summary["parameters"] == sum(p.numel() for p in net.parameters())
    x, c_noise, label = torch.randn(2, 1, 8, 8), torch.randn(2), torch.eye(3)[:2]
    torch.testing.assert_close(network(x, c_noise, label), net(x, c_noise, label))


def test_a_missing_source_is_one_clear_line(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "none.pkl"), str(tmp_path / "made")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rdc: error:") and "none.pkl" in error and "Traceback" not in error
