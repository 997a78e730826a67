"""Small models of diffusers' own classes, trained here on Fashion-MNIST and saved as diffusers saves them.

    python -m benchmarks.studies.train_diffusers --kind dit --out out/dit --minutes 30
    python -m benchmarks.studies.train_diffusers --kind prompts --out out/prompts --minutes 30
    python -m benchmarks.studies.train_diffusers --kind latent --out out/latent --minutes 25
    rdc evaluate --model diffusers:out/dit/pipeline --data fashion-mnist --n 1000 --levels log:2:0.3:0.8:flat

``dit``: a DiTTransformer2DModel of pixels, flow matching. ``latent``: an AutoencoderKL first (a quarter of the minutes), then such a
transformer in its latents. ``prompts``: a UNet2DConditionModel with v prediction and its CLIPTextModel, of which prompts.csv asks.

The loop, the noise levels and the objective are rdc's: the denoising loss plus ``--posterior-weight`` times the cross-entropy of the
posterior over the right class and ``--wrong`` others (docs/levels.md). ln(s) is normal, which for flow matching (t = s / (1 + s)) is a
logit-normal t. 2,000 training images (rdc.data.train_holdout, seed 0) are left out, to choose noise levels by.

A run is continued by the same command, to the bit, from its last checkpoint (a minute). The number of images is planned from the
measured speed of the first start. PIPELINE is written at every checkpoint, with the averaged weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.starting import start
from benchmarks.studies import diffusers_networks as networks
from rdc.data import Dataset, load_dataset, train_holdout
from rdc.models.pipelines.networks import VaeEncoder
from rdc.storage.files import atomic_write
from rdc.storage.json_files import write_json
from rdc.training.batches import normal, uniform
from rdc.training.objective import ConditionalObjective, NoiseDistribution, Objective
from rdc.training.preparation import fingerprint
from rdc.training.time_box import plan_images
from rdc.training.trainer import TrainConfig, Trainer

__all__ = ["KINDS", "main", "train"]

_HELD_OUT, _VAE_SHARE = 2000, 0.25
_LEAST, _KEEP = 0.02, 0.98  # of a pair's weight; of what it was, at every sight
_KL = 1e-4  # weight of the autoencoder's divergence, beside mean squared error


class AutoencoderObjective:
    """Mean squared error of images that were drawn from their latents, and a little of the latents' divergence from N(0, I)."""

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = torch.nn.functional.interpolate(
            x0, networks.VAE_SIZE, mode="bilinear", align_corners=False, antialias=True
        )
        config: Any = net.model.config  # type: ignore[union-attr]
        side = networks.VAE_SIZE // 2 ** (len(config.block_out_channels) - 1)
        again, mean, logvar = net(x0, normal((len(x0), config.latent_channels, side, side), generator).to(x0))
        error = (again - x0).square().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error + _KL * divergence
        return loss, {"loss": loss.detach(), "error": error.detach(), "divergence": divergence.detach()}


class Confusable(ConditionalObjective):
    """Wrong classes are drawn as often as they are taken for the image's own: what is told apart already is seldom asked again.

    The network keeps a buffer ``confusion`` [K, K]: how much posterior one class took from another, lately, both ways (were it drawn one
    way more often than the other, the posterior would lean).
    """

    def wrong_for(self, net: nn.Module, labels: Tensor, generator: torch.Generator) -> Tensor:
        confusion: Any = net.confusion
        weight = (confusion + confusion.T + _LEAST)[labels]
        chance = uniform((len(labels), self.num_classes), generator).to(weight).clamp(1e-9, 1 - 1e-9)
        order = weight.log() - (-chance.log()).log()  # Gumbel's: the largest are a draw without repetition
        order[torch.arange(len(labels)), labels] = -torch.inf
        return order.topk(self.wrong_classes).indices

    def learn(self, net: nn.Module, labels: Tensor, others: Tensor, logits: Tensor) -> None:
        confusion: Any = net.confusion
        pairs = torch.sigmoid(logits[:, 1:] - logits[:, :1]).to(confusion)  # of the two of them
        place = labels[:, None] * self.num_classes + others
        count = torch.zeros(confusion.numel()).scatter_add_(0, place.flatten(), torch.ones(place.numel()))
        total = torch.zeros(confusion.numel()).scatter_add_(0, place.flatten(), pairs.flatten())
        keep = _KEEP**count
        confusion.view(-1).mul_(keep).add_((1 - keep) * total / count.clamp_min(1))


class InLatents:
    """An objective on the latents of images.

    Args:
        objective: of the latents.
        encoder: images in [-1, 1] -> latents; it is not trained.
    """

    def __init__(self, objective: Objective, encoder: nn.Module) -> None:
        self.objective, self.encoder = objective, encoder

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            latents = self.encoder(x0)
        return self.objective(net, latents, labels, generator)


def train(
    part: str, net: nn.Module, objective: Objective, data: Dataset, args: argparse.Namespace, begun: float, share: float,
    export: Callable[[nn.Module, dict[str, Any]], None],
) -> nn.Module:  # fmt: skip
    """Train one network to its end, and return it with the averaged weights.

    Args:
        part: folder within ``args.out``.
        net, objective, data: as of :class:`rdc.training.trainer.Trainer`.
        args: of the command line.
        begun: when the clock of this part was started, on ``time.monotonic``'s clock.
        share: of ``args.minutes`` that are this part's.
        export: called with the averaged network at every checkpoint.
    """
    config = TrainConfig(
        images=args.images or 10**6, batch_size=args.batch, learning_rate=args.lr, warmup_images=min(10_000, args.images or 10_000),
        ema_images=args.ema_images, seed=args.seed, checkpoint_seconds=args.checkpoint_seconds, precision=args.precision,
        weight_decay=args.weight_decay, compile=args.compile,
    )  # fmt: skip
    about = {"study": "train_diffusers", "kind": args.kind, "part": part, "settings": _settings(args)}
    if args.init is not None and part == "denoiser":
        about["begun"] = _begin(net, args.init)
    trainer = Trainer(net, objective, data, config, args.out / part, about, export=export)
    if not args.images:
        plan_images(trainer, share * args.minutes, begun)
    trainer.run()
    return trainer.averaged_network()


def _begin(net: Any, folder: Path) -> str:
    """Give a network the weights of another run's pipeline; their fingerprint."""
    for model, name in (
        (net.model, "transformer" if hasattr(net.model, "transformer_blocks") else "unet"),
        (getattr(net, "encoder", None), "text_encoder"),
    ):
        if model is not None:
            model.load_state_dict(type(model).from_pretrained(folder / name).state_dict())
    return fingerprint(*net.state_dict().values())


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    free = ("out", "minutes", "images", "threads", "data_root", "checkpoint_seconds", "compile", "vae_images", "init")
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name not in free
    }


def _objective(args: argparse.Namespace, data: Dataset) -> ConditionalObjective:
    return Confusable(
        data.num_classes, NoiseDistribution(args.noise_mean, args.noise_std), networks.SIGMA_DATA, posterior_weight=args.posterior_weight,
        wrong_classes=args.wrong, posterior_scale=args.posterior_scale,
    )  # fmt: skip


def _record(args: argparse.Namespace, info: dict[str, Any], *models: nn.Module) -> None:
    weights = [sum(p.numel() for p in model.parameters()) for model in models]
    write_json(args.out / "trained.json", {**info, "weights": weights, "settings": _settings(args)})


def dit(args: argparse.Namespace, data: Dataset, begun: float) -> None:
    """A transformer of pixels."""
    model = networks.transformer(1, 28, args.patch, args.width, args.depth, data.num_classes)

    def export(net: Any, info: dict[str, Any]) -> None:
        networks.save_pipeline(args.out / "pipeline", _flow(), data.class_names, transformer=net.model)
        _record(args, info, net.model)

    net = networks.Raw(model, networks.FLOW, "flow", data.num_classes)
    train("denoiser", net, _objective(args, data), data, args, begun, 1.0, export)


def latent(args: argparse.Namespace, data: Dataset, begun: float) -> None:
    """A transformer in latents."""
    encoder, begun = _encoder(args, data, begun), time.monotonic()
    channels, size = encoder.vae.config.latent_channels, _latent_side(encoder)
    model = networks.transformer(channels, size, 1, args.width, args.depth, data.num_classes)

    def export(net: Any, info: dict[str, Any]) -> None:
        networks.save_pipeline(args.out / "pipeline", _flow(), data.class_names, transformer=net.model, vae=encoder.vae)
        _record(args, info, net.model, encoder.vae)

    net = networks.Raw(model, networks.FLOW, "flow", data.num_classes)
    train("denoiser", net, InLatents(_objective(args, data), encoder), data, args, begun, 1 - _VAE_SHARE, export)


def prompts(args: argparse.Namespace, data: Dataset, begun: float) -> None:
    """A U-Net in latents, with its text encoder."""
    import diffusers

    encoder, begun = _encoder(args, data, begun), time.monotonic()
    folder, names = args.out / "pipeline", data.class_names
    text, tokens, empty = networks.text_parts(folder / "tokenizer", names, args.text_width)
    with atomic_write(args.out / "prompts.csv", "w") as file:
        file.write(
            "class,prompt\n" + "".join(f"{n},{t.format(n.lower())}\n" for n in names for t in networks.TEMPLATES)
        )
    unet = networks.unet(encoder.vae.config.latent_channels, _latent_side(encoder), args.unet_widths, args.text_width)
    net = networks.Prompted(unet, text, tokens, empty)
    scheduler = diffusers.DDPMScheduler(**networks.V_SCHEDULE, prediction_type="v_prediction")

    def export(net: Any, info: dict[str, Any]) -> None:
        networks.save_pipeline(folder, scheduler, names, unet=net.model, text_encoder=net.encoder, vae=encoder.vae)
        _record(args, info, net.model, net.encoder, encoder.vae)

    train("denoiser", net, InLatents(_objective(args, data), encoder), data, args, begun, 1 - _VAE_SHARE, export)


def _encoder(args: argparse.Namespace, data: Dataset, begun: float) -> VaeEncoder:
    """An autoencoder of images of 32 x 32, trained here or taken from another run (--vae), with its scale."""
    import diffusers

    size = (networks.VAE_SIZE,) * 2
    if args.vae is not None:
        return VaeEncoder(diffusers.AutoencoderKL.from_pretrained(args.vae).eval().requires_grad_(False), size)
    vae = networks.autoencoder(args.vae_widths, args.latents)
    drawn = argparse.Namespace(**{**vars(args), "images": args.vae_images or args.images})
    trained: Any = train(
        "autoencoder", networks.Autoencoder(vae), AutoencoderObjective(), data, drawn, begun, _VAE_SHARE, lambda net, info: None
    )  # fmt: skip
    vae = trained.model
    encoder = VaeEncoder(vae, size)
    encoder.scaling = 1.0
    with torch.no_grad():  # latents of half the unit deviation, which is what sigma_data expects
        spread = encoder(2 * data.pixels(slice(0, 1000)) - 1).std().item()
    vae.register_to_config(scaling_factor=round(networks.SIGMA_DATA / spread, 4))
    return VaeEncoder(vae, size)


def _latent_side(encoder: VaeEncoder) -> int:
    return networks.VAE_SIZE // 2 ** (len(encoder.vae.config.block_out_channels) - 1)


def _flow() -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)


KINDS = {"dit": dit, "latent": latent, "prompts": prompts}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kind", required=True, choices=tuple(KINDS))
    add("--out", required=True, type=Path, help="folder of the run; the model is its folder pipeline")
    add("--minutes", type=float, default=30.0, help="of the whole training (default: %(default)s)")
    add("--images", type=int, help="train on so many images instead, counting repetitions")
    add("--data", default="fashion-mnist")
    add("--data-root")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.0)
    add("--ema-images", type=int, default=8000, help="half-life of the weights' average (default: %(default)s)")
    add("--checkpoint-seconds", type=float, default=60.0)
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--compile", action="store_true")
    add("--noise-mean", type=float, default=-0.7, help="of ln(s) (default: %(default)s)")
    add("--noise-std", type=float, default=0.8)
    add("--posterior-weight", type=float, default=0.1)
    add("--posterior-scale", type=float, default=0.1, help="of the losses in the posterior (default: %(default)s)")
    add("--patch", type=int, default=7, help="pixels along a side, for --kind dit (default: %(default)s)")
    add("--wrong", type=int, default=2, help="wrong classes an image (default: %(default)s)")
    add("--width", type=int, default=96, help="of the transformer, a multiple of 32 (default: %(default)s)")
    add("--depth", type=int, default=4)
    add("--vae-widths", type=int, nargs="+", default=[8, 16, 32, 32])
    add("--latents", type=int, default=8, help="channels of the latents (default: %(default)s)")
    add("--vae-images", type=int, help="with --images: images that the autoencoder is trained on")
    add("--init", type=Path, help="folder pipeline of another run of the same kind, whose weights this one begins with")
    add("--vae", type=Path, help="folder of a trained AutoencoderKL, such as OUT/pipeline/vae of another run")
    add("--unet-widths", type=int, nargs="+", default=[64])
    add("--text-width", type=int, default=32)
    return parser


def main(words: list[str] | None = None) -> None:
    begun = time.monotonic()
    args = _parser().parse_args(words)
    torch.set_num_threads(args.threads)
    data = load_dataset(args.data, "train", root=args.data_root)
    if len(data) > 2 * _HELD_OUT:
        data = train_holdout(data, _HELD_OUT)[0]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)  # initial weights; everything else is drawn from (seed, step)
    KINDS[args.kind](args, data, begun)


if __name__ == "__main__":
    start(main)
