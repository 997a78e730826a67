"""What a user may name in place of a pipeline that classifies, through the command line: one line that says what to do, status 2."""

from __future__ import annotations

import re
import shutil

import numpy
import pytest
import torch

from rdc.cli import main
from tests.models.test_pipelines import (
    LEVELS,
    PROMPTS,
    config,
    ddpm,
    diffusers,
    dit,
    index,
    saved,
    stable_diffusion,
    text_encoder,
    vae,
)


def pixels(root):
    return saved(root, ddpm(), {}, transformer=dit())


def latents(root):
    return saved(root, ddpm(), {}, transformer=dit(channels=4), vae=vae())


def with_prompts(root):
    (root.parent / "p.csv").write_text(PROMPTS)
    return stable_diffusion(root)


def unet(root, **more):
    net = diffusers.UNet2DModel(
        in_channels=1, out_channels=1, block_out_channels=(4, 4), layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=2, **more,
    )  # fmt: skip
    return saved(root, ddpm(), {}, unet=net)


def deaf(root):
    """A transformer that ignores its labels."""
    model = dit()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_embedder" in name:
                weight.zero_()
    return saved(root, ddpm(), {}, transformer=model)


def folder(root, **files):
    root.mkdir()
    for name, text in files.items():
        (root / name.replace("_json", ".json")).write_text(text)
    return root


def alone(model):
    def build(root):
        model().save_pretrained(root)
        return root

    return build


def scheduler(text):
    return lambda root: (root / "scheduler" / "scheduler_config.json").write_text(text)


def prompts(text):
    return lambda root: (root.parent / "p.csv").write_bytes(text)


def other_transformer(root):
    shutil.rmtree(root / "transformer")
    dit(channels=3).save_pretrained(root / "transformer")


CASES = {
    "nothing": (folder, None, "expected model.safetensors and model.json"),
    "nothing of diffusers": (folder, None, "expected a folder of diffusers, with model_index.json", "diffusers:"),
    "junk": (lambda root: folder(root, config_json="[1"), None, "config.json: not JSON", "diffusers:"),
    "transformers": (
        alone(lambda: text_encoder("CLIPTextModel", 8, 190, 2)),
        None,
        "a model of transformers; expected a checkpoint of rdc",
    ),
    "an autoencoder": (alone(vae), None, "config.json: expected DiTTransformer2DModel or .* got 'AutoencoderKL'"),
    "no transformer": (
        pixels,
        lambda root: shutil.rmtree(root / "transformer"),
        "expected a folder transformer, a part that model_index",
    ),
    "no autoencoder": (
        latents,
        lambda root: shutil.rmtree(root / "vae"),
        "expected a folder vae, a part .* copy the whole folder",
    ),
    "no scheduler": (pixels, lambda root: shutil.rmtree(root / "scheduler"), "expected scheduler_config.json in"),
    "no weights": (
        pixels,
        lambda root: (root / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
        "no weights; expected diffusion_pytorch_model.safetensors",
    ),
    "no configuration": (
        pixels,
        lambda root: (root / "transformer" / "config.json").unlink(),
        "config.json: no such file",
    ),
    "no tokenizer": (
        with_prompts,
        lambda root: shutil.rmtree(root / "tokenizer"),
        "expected a folder tokenizer, a part",
    ),
    "no text encoder": (
        with_prompts,
        lambda root: shutil.rmtree(root / "text_encoder"),
        "expected a folder text_encoder, a part",
    ),
    "none named": (
        with_prompts,
        lambda root: index(root, text_encoder=None),
        "expected a text encoder, which prompts need",
    ),
    "parts of two": (latents, other_transformer, "expected an autoencoder of 3 latent channels, which its DiT.* got 4"),
    "an unknown scheduler": (
        pixels,
        scheduler('{"_class_name": "KarrasVeScheduler"}'),
        r"expected a variance-preserving scheduler \(beta_schedule\) or a flow-matching one .* got 'KarrasVeScheduler'",
    ),
    "unknown betas": (
        pixels,
        lambda root: config(root / "scheduler" / "scheduler_config.json", beta_schedule="odd"),
        "beta_schedule: expected linear",
    ),
    "no steps": (
        pixels,
        scheduler('{"_class_name": "FlowMatchX", "num_train_timesteps": 0}'),
        "expected a positive number; got 0",
    ),
    "half a scheduler": (pixels, scheduler("{"), "scheduler_config.json: not JSON"),
    "labels are ignored": (deaf, None, "its labels are ignored, so it cannot classify"),
    "no labels": (
        lambda root: unet(root, sample_size=8),
        None,
        "expected a class-conditional model; its config.json has no class",
    ),
    "no size": (
        lambda root: unet(root, num_class_embeds=3),
        None,
        "expected sample_size, the model's height and width; got None",
    ),
    "prompts that are none": (with_prompts, prompts(b"cat\n"), "p.csv: line 1: expected class,prompt"),
    "prompts of another kind": (with_prompts, prompts(bytes(range(256))), "p.csv: not prompts as CSV"),
    "one prompt twice": (
        with_prompts,
        prompts(b"cat,a pet\ndog,a pet\n"),
        "classes cat and dog are the same to the text encoder",
    ),
    "no prompts": (with_prompts, lambda root: (root.parent / "p.csv").unlink(), "p.csv: no such file"),
    "fewer prompts than classes": (
        with_prompts,
        prompts(b"cat,a cat\ndog,a dog\n"),
        r"has label 2, model .* knows 2 classes \(0..1\)",
    ),
}


def evaluated(root, name, shape, *more, labels=(0, 1, 2), names=None):
    content = {"images": numpy.zeros((len(labels), *shape), numpy.uint8), "labels": numpy.array(labels)}
    if names:
        content["class_names"] = numpy.array(names)
    numpy.savez(root / "d.npz", **content)
    words = [
        "evaluate",
        "--model",
        name,
        "--data",
        str(root / "d.npz"),
        "--n",
        str(len(labels)),
        "--steps",
        "1",
        "--levels",
        LEVELS,
    ]
    return main([*words, "--sanity", "0", "--quiet", "--out", str(root / "run"), *more])


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_classify_is_one_line(case, tmp_path, capsys):
    build, change, words, *prefix = CASES[case]
    root = build(tmp_path / "model")
    if change is not None:
        change(root)
    more = ["--prompts", str(tmp_path / "p.csv")] if build is with_prompts else []
    shape = (1, 8, 8) if build not in (latents, with_prompts) else (3, 16, 16)
    capsys.readouterr()
    assert evaluated(tmp_path, "".join([*prefix, str(root)]), shape, *more) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rdc: error: ")]
    assert len(errors) == 1
    assert re.search(words, errors[0]), errors[0]


def test_labels_that_the_model_does_not_know(tmp_path, capsys):
    assert evaluated(tmp_path, str(pixels(tmp_path / "model")), (1, 8, 8), labels=range(5)) == 2
    said = capsys.readouterr().err
    assert "has 3 classes, d has 5: were they made for each other?" in said and "has label 4, model" in said


def test_prompts_in_another_order_than_the_datas_classes_are_said(tmp_path, capsys):
    root = with_prompts(tmp_path / "model")
    words = ["--prompts", str(tmp_path / "p.csv")]
    assert evaluated(tmp_path, str(root), (3, 16, 16), *words, names=["cat", "car", "dog"]) == 0
    said = capsys.readouterr().err
    assert "names the classes of model" in said and "1 is car there, dog here" in said
    assert evaluated(tmp_path, str(root), (3, 16, 16), *words, "--overwrite", names=["cat", "dog", "car"]) == 0
    assert "in another order" not in capsys.readouterr().err
