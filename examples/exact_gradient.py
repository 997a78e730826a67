"""What an attack sees: the exact gradient of a robust diffusion classifier, and the straight-through one (BPDA).

python examples/exact_gradient.py
"""

import torch

import rdc

data = rdc.load_dataset("fashion-mnist-sample")[:4]
classifier = rdc.load("fashion-mnist", lm="paper-v2")  # likelihood maximisation in front of the classifier
slopes = {}
for mode in ("exact", "bpda"):
    pixels = data.pixels().requires_grad_()
    log_p = classifier.with_(gradient=mode)(pixels)
    (slopes[mode],) = torch.autograd.grad(log_p[range(4), data.labels].sum(), pixels)
cosine = torch.nn.functional.cosine_similarity(slopes["exact"].flatten(1), slopes["bpda"].flatten(1))
print("cosine of the two gradients:", [round(value, 2) for value in cosine.tolist()])
