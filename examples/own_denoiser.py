"""Make a classifier of a diffusion model of your own, and attack it with gradients that go through all of it.

python examples/own_denoiser.py
"""

import torch

import rdc


class Denoiser(torch.nn.Module):
    """Predicts the noise of z at a step of 1,000, given a label; 3 stands for no label. Not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.label = torch.nn.Embedding(4, 16)
        self.first, self.last = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, z: torch.Tensor, step: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.silu(self.first(z) + self.label(label)[:, :, None, None]))


torch.manual_seed(0)
classifier = rdc.from_denoiser(
    Denoiser(), num_classes=3, image_shape=(1, 16, 16), predicts="eps", schedule="vp-cosine", null_label=3
)
pixels = torch.rand(4, 1, 16, 16)
labels = classifier(pixels).argmax(1)
print(rdc.attack(classifier, pixels, labels, eps="8/255", steps=5))
print(rdc.attack(classifier.with_(lm="paper-v2,steps=2"), pixels, labels, eps="8/255", steps=5))  # exact, through both
