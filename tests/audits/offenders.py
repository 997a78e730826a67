"""Models that break one rule of the audit each, and some that break none: functions of 8 x 8 images, made anew by every call."""

from __future__ import annotations

import torch
from torch import nn

from rdc.data import Dataset
from tests.evaluation_models import CLASSES, NAMES, images

N = 32
WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
PIXELS = images(N, seed=5).float() / 255


def logits(x):
    """Smooth, not linear; nothing is masked."""
    return torch.tanh(3 * (x.flatten(1) - 0.5)) @ WEIGHT


LABELS = logits(PIXELS).argmax(1)
DATA = Dataset(images(N, seed=5), LABELS, NAMES, "blobs", "test")


def turned(z):
    return z.roll(1, dims=1)


def smooth():
    return logits


def small_network(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), *layers, nn.Flatten(), nn.Linear(512, CLASSES))
    with torch.no_grad():
        for weight in first.parameters():
            weight.mul_(3)
    return first


# --- answers ----------------------------------------------------------------------------------------------------------
def decisions():
    return lambda x: logits(x).argmax(1)


def five_classes():
    return lambda x: torch.cat([logits(x), -20 - logits(x)[:, :1]], 1)


def standardised():
    """Every image by its own mean and deviation: 0 / 0 on one that is black."""

    def model(x):
        flat = x.flatten(1)
        return logits(0.5 + 0.2 * (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True))

    return model


def constant():
    return lambda x: logits(0 * x + 0.3)


def other_order():
    return lambda x: turned(logits(x))


def rounded_logits():
    """Large logits of 11 bits: the two highest are often the same number."""
    return lambda x: (2048 + logits(x)).half().float()


def bfloat16():
    return small_network().to(torch.bfloat16)


def softmax():
    return lambda x: logits(x).softmax(1)


def own_noise():
    generator = torch.Generator().manual_seed(0)
    return lambda x: logits(x + 0.05 * torch.randn(x.shape, generator=generator))


def optimising():
    def model(x):
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            (step,) = torch.autograd.grad(logits(z).logsumexp(1).sum(), z, create_graph=True)
        return logits(z + 0.001 * step)

    return model


def voting():
    """The mean over eight moved copies of the image."""
    network = small_network().eval()
    return lambda x: torch.stack([network((x + step / 500).clamp(0, 1)) for step in range(-4, 4)]).mean(0)


def global_noise():
    return lambda x: logits(x + 0.05 * torch.randn_like(x))


def reseeded():
    """As the authors' program has it: the same noise in every call, by the global generator."""

    def model(x):
        torch.manual_seed(1)
        return logits(x + 0.05 * torch.randn_like(x[:1]))

    return model


def counting():
    asked = [0]

    def model(x):
        asked[0] += 1
        return logits(x) + 0.1 * max(0, asked[0] - 20) * torch.eye(CLASSES)[0]

    return model


def batch_mean():
    return lambda x: logits(x) - logits(x).mean(0, keepdim=True)


def by_place():
    """The label by the place in the file."""
    place = nn.functional.one_hot(LABELS, CLASSES).float()
    return lambda x: 0.1 * logits(1 - x) + 3 * place[torch.arange(len(x)) % N]


def hidden_dropout():
    network = small_network(nn.Dropout(0.3))  # in training mode, and nobody can see it
    return lambda x: network(x)


class Adapting(nn.Module):
    """Learns the mean of what it is asked."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean += 1e-6 * x.detach().mean()
        return logits(x - 0 * self.mean)


def in_place():
    return lambda x: logits(x.sub_(0.01))


def labels_inside():
    known = LABELS.clone()
    return lambda x: logits(x) + 0 * known[0]


# --- input ------------------------------------------------------------------------------------------------------------
def of_another_scale():
    """Made for images in [-1, 1]."""
    return lambda x: logits((x + 1) / 2)


def rounding():
    """16 levels, with the gradient of no rounding."""
    return lambda x: logits(x + ((15 * x).round() / 15 - x).detach())


def clamping():
    return lambda x: logits(x.clamp(0.1, 0.9))


def remembering():
    """Knows each test image by its bytes."""
    known = {bytes(image.flatten().tolist()): label for image, label in zip(DATA.images, LABELS, strict=True)}

    def model(x):
        keys = [bytes(image.flatten().tolist()) for image in (255 * x.detach()).round().to(torch.uint8)]
        rows = [nn.functional.one_hot(known[key], CLASSES) if key in known else torch.zeros(CLASSES) for key in keys]
        return logits(x) + 20 * torch.stack([row.float() for row in rows])

    return model


def detecting():
    """Anything that lies between the levels of 8 bits is an attack."""

    def model(x):
        off = ((255 * x).round() - 255 * x).abs().flatten(1).amax(1, keepdim=True) > 1e-3
        return torch.where(off, turned(logits(x)), logits(x))

    return model


# --- gradients --------------------------------------------------------------------------------------------------------
def detached():
    return lambda x: logits(x.detach())


def nearest():
    """The clean image closest to each row is classified in its place."""

    def model(x):
        with torch.no_grad():
            found = PIXELS.flatten(1)[torch.cdist(x.flatten(1), PIXELS.flatten(1)).argmin(1)].view_as(x)
        return logits(found) + 0 * x.flatten(1)[:, :1]

    return model


def root():
    """The root of a distance that is 0: infinity times 0."""
    return lambda x: logits(x) + 1e-3 * (x - x.detach()).abs().sqrt().flatten(1)[:, :CLASSES]


def reversed_gradient():
    return lambda x: logits(2 * x.detach() - x)


def hot():
    return lambda x: 1000 * logits(x)


def partly_rounded():
    """Three quarters of the pixels reach the decision through a rounding."""

    def model(x):
        mask = (torch.arange(64) % 4 == 0).float().view(1, 8, 8)
        return logits(x * mask + (1 - mask) * (x * 8).round() / 8)

    return model


def linear():
    return lambda x: 3 * (x.flatten(1) - 0.5) @ WEIGHT


def rippled():
    return lambda x: logits(x) + 0.05 * torch.sin(4000 * x.flatten(1)) @ WEIGHT.abs()


class Mirror:
    """purify(x) = 1 - x: with the identity as its Jacobian an attacker walks the wrong way."""

    def purify(self, x):
        return 1 - x

    def classify(self, x):
        return logits(1 - x)
