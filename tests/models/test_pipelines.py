"""Pipelines of diffusers: the losses of a plain loop through their own model and scheduler, gradients, and what is refused."""

from __future__ import annotations

import json

import numpy
import pytest
import safetensors.torch
import torch
from PIL import Image

import rdc
from rdc.cli import main
from rdc.errors import CheckpointError, ConfigError, DataError
from rdc.models.pipelines.parts import find_pipeline
from rdc.models.pipelines.prompts import embedded_prompts, read_prompts
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_SUM

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLASSES, LEVELS = 3, "log:3:0.2:2:flat"
PROMPTS = 'class,prompt\ncat,a cat\ndog,"a dog, sitting"\ndog,the dog\ncar,a car\n'


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():  # several of these begin as zeros, and would hide what they multiply
            spread = 0.1 if weight.ndim == 1 else 0.3 / weight[0].numel() ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return model.eval()


def dit(channels=1, size=8, **more):
    return randomised(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=channels, out_channels=more.pop("out", channels), num_layers=2,
            norm_num_groups=2, sample_size=size, patch_size=2, num_embeds_ada_norm=CLASSES, **more,
        )
    )  # fmt: skip


def vae():
    return randomised(
        diffusers.AutoencoderKL(
            in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[4, 8], layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=16, scaling_factor=0.5,
        ),
        1,
    )  # fmt: skip


def tokenizer(folder):
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    made.save_pretrained(folder)
    return len(words)


def text_encoder(kind, width, words, seed):
    settings = transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        projection_dim=width, eos_token_id=words - 1, bos_token_id=words - 2, pad_token_id=words - 1,
    )  # fmt: skip
    return randomised(getattr(transformers, kind)(settings), seed)


def saved(root, scheduler, index, **parts):
    root.mkdir(exist_ok=True)
    for name, part in parts.items():
        part.save_pretrained(root / name)
    scheduler.save_pretrained(root / "scheduler")
    for name, part in parts.items():
        library = "transformers" if type(part).__module__.startswith("transformers") else "diffusers"
        index[name] = [library, type(part).__name__]
    (root / "model_index.json").write_text(json.dumps({"_class_name": "APipeline", **index}))
    return root


def ddpm(**more):
    return diffusers.DDPMScheduler(num_train_timesteps=1000, **more)


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)


def stable_diffusion(root, prediction="epsilon"):
    words = tokenizer(root / "tokenizer")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=[4, 8], layers_per_block=1, cross_attention_dim=8,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], norm_num_groups=2,
        attention_head_dim=2,
    )  # fmt: skip
    scheduler = ddpm(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction)
    encoder = text_encoder("CLIPTextModel", 8, words, 2)
    return saved(
        root,
        scheduler,
        {"tokenizer": ["transformers", "CLIPTokenizer"]},
        unet=randomised(unet),
        vae=vae(),
        text_encoder=encoder,
    )


def t5(root, width):
    """A tiny T5 encoder and its tokenizer, made here: every printable character is a piece."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = [(chr(code), -4.0) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -3.0), ("\u2581dog", -1.0), *letters]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    words = transformers.T5TokenizerFast(tokenizer_object=made, extra_ids=0, model_max_length=512)
    words.save_pretrained(root / "tokenizer_3")
    settings = transformers.T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return randomised(transformers.T5EncoderModel(settings), 4)


def stable_diffusion_3(root, with_t5=False):
    words = tokenizer(root / "tokenizer")
    tokenizer(root / "tokenizer_2")
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=20,
        caption_projection_dim=8, pooled_projection_dim=14, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    third = [["transformers", "T5TokenizerFast"], t5(root, 20)] if with_t5 else [[None, None], None]
    index = {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")} | {
        "tokenizer_3": third[0], "text_encoder_3": [None, None],
    }  # fmt: skip
    more = {"text_encoder_3": third[1]} if with_t5 else {}
    return saved(
        root, flow(), index, transformer=randomised(model), vae=vae(),
        text_encoder=text_encoder("CLIPTextModelWithProjection", 8, words, 2),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 6, words, 3), **more,
    )  # fmt: skip


def load(root, more="", **settings):
    return rdc.load(f"diffusers:{root}{more}", **{"levels": LEVELS, **settings})


def losses_by_hand(model, scheduler, x0, draw, call):
    """sum_t w_t |F - F*|^2 = sum_t w_t |D - x0|^2 / c_out^2, class by class, level by level, without batches."""
    rows = []
    for image in x0:
        row = []
        for label in range(CLASSES):
            total = 0.0
            for s, w, noise in zip(draw.sigma.tolist(), draw.weight.tolist(), draw.noise, strict=True):
                c_out = s * 0.5 / (s**2 + 0.25) ** 0.5
                if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
                    t = s / (1 + s)
                    z = (1 - t) * image + t * noise
                    out = call(model, z[None], torch.tensor([1000 * t]), label)[0, : len(image)]
                    estimate = z - t * out
                else:
                    levels = (1 / scheduler.alphas_cumprod.double() - 1).sqrt().log()
                    step = (levels - torch.tensor(s, dtype=torch.float64).log()).abs().argmin()
                    scale = 1 / (1 + s**2) ** 0.5
                    z = scale * (image + s * noise)
                    out = call(model, z[None], step[None], label)[0, : len(image)]
                    if scheduler.config.prediction_type == "epsilon":
                        estimate = (z - s * scale * out) / scale
                    else:
                        estimate = scale * z - s * scale * out
                total += w * ((estimate - image) ** 2).sum().item() / c_out**2
            row.append(total)
        rows.append(row)
    return torch.tensor(rows)


def by_label(model, z, time, label):
    return model(z, timestep=time, class_labels=torch.tensor([label]), return_dict=False)[0]


@pytest.mark.parametrize("scheduler", [ddpm(), ddpm(prediction_type="v_prediction"), flow()], ids=["eps", "v", "flow"])
@torch.no_grad()
def test_a_transformer_of_pixels_gives_the_losses_of_a_plain_loop(tmp_path, scheduler):
    model = dit(out=2)  # learned variance: the second half is left out
    classifier = load(saved(tmp_path, scheduler, {"id2label": {"0": "a", "1": "b", "2": "c"}}, transformer=model))
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = losses_by_hand(model, scheduler, 2 * pixels - 1, classifier.drawn(0, pixels), by_label)
    found = classifier.class_losses(pixels)
    assert (found - expected).abs().max() < FLOAT32_SUM * expected.max()
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.describe()["denoiser"]["pipeline"] == "DiTTransformer2DModel"


@torch.no_grad()
def test_latents_are_the_mean_that_the_autoencoder_gives(tmp_path):
    model, auto, scheduler = dit(channels=4), vae(), ddpm()
    classifier = load(saved(tmp_path, scheduler, {}, transformer=model, vae=auto))
    assert classifier.image_shape == (3, 16, 16)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = auto.encode(2 * pixels - 1).latent_dist.mean * 0.5
    expected = losses_by_hand(model, scheduler, latents, classifier.drawn(0, pixels), by_label)
    assert (classifier.class_losses(pixels) - expected).abs().max() < FLOAT32_SUM * expected.max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_prompts_are_classes_and_those_of_a_class_are_averaged(tmp_path, prediction):
    root = stable_diffusion(tmp_path / "sd", prediction)
    (tmp_path / "p.csv").write_text(PROMPTS)
    classifier = load(root, f",prompts={tmp_path / 'p.csv'}")
    assert classifier.class_names == ("cat", "dog", "car")
    encoder = transformers.CLIPTextModel.from_pretrained(root / "text_encoder").eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(root / "tokenizer")

    def embedded(text):
        return encoder(
            tokens(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        )[0]

    states = [embedded("a cat"), (embedded("a dog, sitting") + embedded("the dog")) / 2, embedded("a car")]
    model = diffusers.UNet2DConditionModel.from_pretrained(root / "unet").eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(root / "scheduler")
    auto = diffusers.AutoencoderKL.from_pretrained(root / "vae").eval()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = auto.encode(2 * pixels - 1).latent_dist.mean * 0.5

    def by_prompt(model, z, time, label):
        return model(z, time, encoder_hidden_states=states[label], return_dict=False)[0]

    expected = losses_by_hand(model, scheduler, latents, classifier.drawn(0, pixels), by_prompt)
    assert (classifier.class_losses(pixels) - expected).abs().max() < FLOAT32_SUM * expected.max()
    guided = load(root, f",prompts={tmp_path / 'p.csv'},guidance=3")
    nothing = embedded("")

    def by_guidance(model, z, time, label):
        without = model(z, time, encoder_hidden_states=nothing, return_dict=False)[0]
        return without + 3 * (by_prompt(model, z, time, label) - without)

    expected = losses_by_hand(model, scheduler, latents, classifier.drawn(0, pixels), by_guidance)
    assert (guided.class_losses(pixels) - expected).abs().max() < FLOAT32_SUM * expected.max()
    assert guided.describe()["denoiser"]["guidance"] == 3


@pytest.mark.parametrize("with_t5", [False, True])
@torch.no_grad()
def test_stable_diffusion_3_joins_its_text_encoders(tmp_path, with_t5):
    root = stable_diffusion_3(tmp_path / "sd3", with_t5)
    (tmp_path / "p.csv").write_text(PROMPTS)
    classifier = load(root, f",prompts={tmp_path / 'p.csv'}")
    tokens = transformers.CLIPTokenizer.from_pretrained(root / "tokenizer")
    encoders = [
        transformers.CLIPTextModelWithProjection.from_pretrained(root / name).eval()
        for name in ("text_encoder", "text_encoder_2")
    ]

    def behind(text):
        if not with_t5:
            return torch.zeros(1, 16, 20)  # what diffusers' own pipeline puts there, and what training saw
        words = transformers.T5TokenizerFast.from_pretrained(root / "tokenizer_3")
        ids = words(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return transformers.T5EncoderModel.from_pretrained(root / "text_encoder_3").eval()(ids)[0]

    def embedded(text):
        ids = tokens(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        both = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        wide = torch.cat([one.hidden_states[-2] for one in both], 2)
        wide = torch.cat([wide, torch.zeros(1, 16, 6)], 2)
        return torch.cat([wide, behind(text)], 1), torch.cat([one.text_embeds for one in both], 1)

    dog = [embedded(text) for text in ("a dog, sitting", "the dog")]
    table = [embedded("a cat"), tuple((a + b) / 2 for a, b in zip(*dog, strict=True)), embedded("a car")]
    model = diffusers.SD3Transformer2DModel.from_pretrained(root / "transformer").eval()
    auto = diffusers.AutoencoderKL.from_pretrained(root / "vae").eval()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = auto.encode(2 * pixels - 1).latent_dist.mean * 0.5

    def by_prompt(model, z, time, label):
        states, pooled = table[label]
        return model(z, encoder_hidden_states=states, pooled_projections=pooled, timestep=time, return_dict=False)[0]

    expected = losses_by_hand(model, flow(), latents, classifier.drawn(0, pixels), by_prompt)
    assert (classifier.class_losses(pixels) - expected).abs().max() < FLOAT32_SUM * expected.max()


@pytest.mark.parametrize("with_t5", [False, True])
@torch.no_grad()
def test_prompts_of_stable_diffusion_3_are_what_its_own_pipeline_makes_of_them(tmp_path, with_t5):
    root = stable_diffusion_3(tmp_path / "sd3", with_t5)
    own = diffusers.StableDiffusion3Pipeline(
        *(
            kind.from_pretrained(root / name)
            for name, kind in (
                ("transformer", diffusers.SD3Transformer2DModel),
                ("scheduler", diffusers.FlowMatchEulerDiscreteScheduler),
                ("vae", diffusers.AutoencoderKL),
                ("text_encoder", transformers.CLIPTextModelWithProjection),
                ("tokenizer", transformers.CLIPTokenizer),
                ("text_encoder_2", transformers.CLIPTextModelWithProjection),
                ("tokenizer_2", transformers.CLIPTokenizer),
            )
        ),
        text_encoder_3=transformers.T5EncoderModel.from_pretrained(root / "text_encoder_3") if with_t5 else None,
        tokenizer_3=transformers.T5TokenizerFast.from_pretrained(root / "tokenizer_3") if with_t5 else None,
    )
    classes = {"cat": ["a cat"], "dog": ["the dog, sitting"]}
    found = embedded_prompts(find_pipeline(root), classes, 20)
    for row, text in enumerate(["a cat", "the dog, sitting", ""]):
        length = 77 if with_t5 else 16
        states, _, pooled, _ = own.encode_prompt(
            text, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        assert states.shape[1] == 16 + length
        assert (found.states[row] - states[0]).abs().max() < FLOAT32_SUM
        assert (found.pooled[row] - pooled[0]).abs().max() < FLOAT32_SUM


@torch.no_grad()
def test_attention_under_its_old_names_is_read(tmp_path):
    root = saved(tmp_path, ddpm(), {}, transformer=dit(channels=4), vae=vae())
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = load(root)(pixels)
    path = root / "vae" / "diffusion_pytorch_model.safetensors"
    old = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }  # as in Stable Diffusion 1's own files
    state = safetensors.torch.load_file(path)
    renamed = {}
    for name, value in state.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = value
    assert set(renamed) != set(state)
    safetensors.torch.save_file(renamed, path)
    assert torch.equal(load(root)(pixels), expected)


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2"])
@pytest.mark.parametrize("kind", ["transformer", "latents", "prompts"])
def test_gradients_in_pixels_are_differences_in_float64(tmp_path, kind, lm):
    if kind == "prompts":
        (tmp_path / "p.csv").write_text(PROMPTS)
        classifier = load(stable_diffusion(tmp_path / "sd"), f",prompts={tmp_path / 'p.csv'}", lm=lm)
    else:
        parts = {"transformer": dit()} if kind == "transformer" else {"transformer": dit(channels=4), "vae": vae()}
        classifier = load(saved(tmp_path, ddpm(), {}, **parts), lm=lm)
    classifier = classifier.with_(memory_budget_mb=512)
    classifier.denoiser.double()
    shape = (1, *classifier.image_shape)
    pixels = (
        0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).requires_grad_()
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(classifier.class_losses(pixels)[:, 1].sum(), pixels)
    step = 1e-5
    with torch.no_grad():
        above, below = (classifier.class_losses(pixels + sign * step * direction)[:, 1].sum() for sign in (1, -1))
    slope = (gradient * direction).sum()
    assert ((above - below) / (2 * step) - slope).abs() < CENTRAL_DIFFERENCE * max(1, slope.abs())


def test_images_of_another_size_are_resized_and_grey_ones_repeated(tmp_path):
    classifier = load(saved(tmp_path, ddpm(), {}, transformer=dit(channels=4), vae=vae()), ",image=1x12x10")
    assert classifier.image_shape == (1, 12, 10)
    pixels = torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(pixels)[:, 0].sum(), pixels)
    assert gradient.shape == pixels.shape and gradient.abs().max() > 0


def test_a_model_alone_and_half_precision_weights(tmp_path):
    dit().half().save_pretrained(tmp_path / "model", variant="fp16")
    ddpm().save_pretrained(tmp_path / "model")
    classifier = load(tmp_path / "model")
    assert classifier(torch.rand(1, 1, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda root: (root / "model_index.json").unlink(), CheckpointError, "expected a folder of diffusers"),
        (
            lambda root: index(root, transformer=["evil", "Model"]),
            CheckpointError,
            "Code from a model's folder is never executed",
        ),
        (
            lambda root: index(root, transformer=["diffusers", "FluxTransformer2DModel"]),
            CheckpointError,
            "expected DiTTransformer2DModel or",
        ),
        (lambda root: index(root, transformer=None), CheckpointError, "expected a part transformer or unet"),
        (lambda root: index(root, vae=["diffusers", "AutoencoderKL"]), CheckpointError, "vae"),
        (lambda root: remove(root / "scheduler"), CheckpointError, "expected scheduler_config.json"),
        (
            lambda root: config(root / "scheduler/scheduler_config.json", beta_schedule=None, trained_betas=None),
            CheckpointError,
            "beta_schedule",
        ),
        (
            lambda root: config(root / "scheduler/scheduler_config.json", prediction_type="score"),
            CheckpointError,
            "prediction_type: expected",
        ),
        (
            lambda root: config(root / "transformer/config.json", num_layers=3),
            CheckpointError,
            "are missing, unknown or of another shape",
        ),
        (
            lambda root: config(root / "transformer/config.json", num_layers=10**9),
            CheckpointError,
            "num_layers: expected numbers up to 1,000",
        ),
        (
            lambda root: (root / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"x"),
            CheckpointError,
            "transformer",
        ),
    ],
)
def test_a_folder_that_is_something_else_is_refused_in_one_line(tmp_path, change, error, words):
    root = saved(tmp_path / "a", ddpm(), {}, transformer=dit())
    change(root)
    with pytest.raises(error, match=words) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def index(root, **changes):
    path = root / "model_index.json"
    path.write_text(
        json.dumps({name: value for name, value in {**json.loads(path.read_text()), **changes}.items() if value})
    )


def config(path, **changes):
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({name: value for name, value in found.items() if value is not None or name == "trained_betas"})
    )
    if changes.get("beta_schedule", "") is None:
        path.write_text(json.dumps({name: value for name, value in found.items() if name not in changes}))


def remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (",prompts=p.csv", "takes class labels, not text"),
        (",guidance=0", "guidance: expected a positive number"),
        (",guidance=x", "guidance: expected a positive number"),
        (",image=1x9x9", "this model works in pixels"),
        (",image=8", "image: expected CxHxW"),
        (",null=9", "null: expected the index of a label"),
        (",colour=3", "expected diffusers:NAME with some of prompts="),
    ],
)
def test_words_that_do_not_fit_are_refused(tmp_path, more, words):
    with pytest.raises(ConfigError, match=words):
        load(saved(tmp_path, ddpm(), {}, transformer=dit()), more)


def test_the_commands_take_a_folder_and_prompts(tmp_path, capsys):
    root = saved(tmp_path / "dit", ddpm(), {}, transformer=dit())
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    numpy.savez(tmp_path / "d.npz", images=images.numpy(), labels=numpy.arange(6) % CLASSES)
    words = ["evaluate", "--model", f"diffusers:{root}", "--data", str(tmp_path / "d.npz"), "--n", "6", "--steps", "2"]
    assert main([*words, "--levels", LEVELS, "--sanity", "0", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["classifier"]["denoiser"]["pipeline"] == "DiTTransformer2DModel"
    (tmp_path / "p.csv").write_text(PROMPTS)
    Image.fromarray(images[0, 0].numpy()).resize((16, 16)).convert("RGB").save(tmp_path / "a.png")
    capsys.readouterr()
    model = f"diffusers:{stable_diffusion(tmp_path / 'sd')},prompts={tmp_path / 'p.csv'}"
    assert main(["classify", "--model", model, "--levels", LEVELS, "--json", str(tmp_path / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["class"] in ("cat", "dog", "car")


def test_prompts_are_an_option_too_and_a_bare_folder_is_known(tmp_path, capsys):
    root = stable_diffusion(tmp_path / "sd")
    prompts = tmp_path / "p.csv"
    prompts.write_text(PROMPTS)
    Image.new("RGB", (16, 16), (9, 90, 200)).save(tmp_path / "a.png")
    found = []
    for words in (
        ["--model", f"diffusers:{root},prompts={prompts}"],
        ["--model", f"diffusers:{root}", "--prompts", str(prompts)],
        ["--model", str(root), "--prompts", str(prompts)],
    ):
        assert main(["classify", *words, "--levels", LEVELS, "--json", str(tmp_path / "a.png")]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] == found[2]
    numpy.savez(tmp_path / "d.npz", images=numpy.zeros((3, 3, 16, 16), numpy.uint8), labels=numpy.arange(3))
    words = ["evaluate", "--model", str(root), "--prompts", str(prompts), "--data", str(tmp_path / "d.npz"), "--n", "3"]
    assert (
        main([*words, "--steps", "1", "--levels", LEVELS, "--sanity", "0", "--out", str(tmp_path / "run"), "--quiet"])
        == 0
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["model"] == f"diffusers:{root},prompts={prompts}"
    costs = [
        "bench",
        "cost",
        "--model",
        f"{root}@label=sd",
        "--prompts",
        str(prompts),
        "--data",
        str(tmp_path / "d.npz"),
    ]
    assert main([*costs, "--levels", LEVELS, "--batch", "1", "--rounds", "1", "--memory", "off", "--quiet"]) == 0


def test_a_bare_folder_of_one_model_is_known(tmp_path):
    dit().save_pretrained(tmp_path / "model")
    ddpm().save_pretrained(tmp_path / "model")
    named, bare = (
        rdc.load(f"{prefix}{tmp_path / 'model'}", levels=LEVELS)(torch.ones(1, 1, 8, 8))
        for prefix in ("diffusers:", "")
    )
    assert torch.equal(named, bare)


@pytest.mark.parametrize(
    ("model", "prompts", "words"),
    [
        ("fashion-mnist", "p.csv", "--prompts: expected a model that takes text"),
        ("diffusers:a,prompts=b.csv", "p.csv", "names prompts itself"),
        ("diffusers:a", "p,q.csv", "whose name has no comma"),
    ],
)
def test_prompts_that_do_not_belong_are_one_line(model, prompts, words, capsys):
    assert main(["classify", "--model", model, "--prompts", prompts, "a.png"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_name_that_is_nowhere_says_where_it_was_looked_for(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="no such folder here, not in Hugging Face's cache"):
        rdc.load("diffusers:nobody-at-all/no-model")
    assert "its weights are not here; fetched from Hugging Face, nobody-at-all/no-model" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="there is no such folder"):
        rdc.load("diffusers:./nothing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat,a cat\n", "at least two classes"),
        ("cat,a,b\ndog,x\n", "line 1: expected class,prompt"),
        ("cat,\ndog,x\n", "line 1"),
        ("", "two classes"),
    ],
)
def test_prompts_that_are_none_are_refused(tmp_path, text, words):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / "p.csv")


def test_a_text_model_wants_prompts(tmp_path):
    root = stable_diffusion(tmp_path / "sd")
    with pytest.raises(ConfigError, match="name a CSV file"):
        load(root)
    with pytest.raises(DataError, match="p.csv"):
        load(root, f",prompts={tmp_path}/p.csv")
