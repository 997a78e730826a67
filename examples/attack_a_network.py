"""Attack a network of your own: any nn.Module from pixels in [0, 1] to logits.

python examples/attack_a_network.py
"""

import torch

import rdc


class Network(torch.nn.Module):
    """Yours. This one has a shipped network inside; what a network does to its input, such as normalising it, belongs in here."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = rdc.load("fashion-mnist-standard").model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.inside(pixels)


data = rdc.load_dataset("fashion-mnist-sample")[:32]
for result in rdc.attack(Network(), data, eps=["2/255", "4/255", "8/255"], steps=20):
    print(result)
