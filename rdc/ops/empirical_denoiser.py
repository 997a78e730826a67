r"""The optimal denoiser of an empirical distribution: the mean of its images, weighted by how well they explain what is seen.

With images :math:`z_i` (n of them, D pixels each), clean inputs :math:`x_n` and noise :math:`s_t e_t` that all inputs share,

.. math::
    M_{nt} = \sum_i \operatorname{softmax}_i\bigl(\beta_{nt} (a_{ni} + b_{ti} - h_i)\bigr)\, z_i \qquad
    a_{ni} = x_n \cdot z_i \quad b_{ti} = s_t e_t \cdot z_i \quad h_i = \tfrac12 |z_i|^2

which is :math:`\sum_i \operatorname{softmax}_i(-|x_n + s_t e_t - z_i|^2 / (2 s_t^2))\, z_i` for :math:`\beta = 1 / s^2`: what all
scores of a row share does not change a softmax. The products with the inputs are taken once for all T levels. The gradient,
with :math:`g = dL/dM`, is

.. math::
    da_{ni} = \sum_t \beta_{nt} w_{nti} \bigl(z_i - M_{nt}\bigr) \cdot g_{nt}

The native kernel leaves out images whose weight is below 1e-11 of the largest (:data:`rdc.ops.empirical_denoiser_native.CUT`): at low
noise all but a few.

Source: Chen et al., arXiv 2305.15241, section 3.3; Karras et al., arXiv 2206.00364, appendix B.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, InputError
from rdc.execution.opaque import transformed
from rdc.ops import _native, empirical_denoiser_native
from rdc.ops.empirical_denoiser_reference import empirical_denoiser_matrix, empirical_denoiser_reference

__all__ = ["empirical_denoiser", "empirical_denoiser_reference"]

BACKENDS = ("auto", "native", "reference", "matrix")


def empirical_denoiser(
    inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Weighted mean of images for every input at every level, without a matrix of all weights.

    Args:
        inner: a [N, n], products of inputs and images.
        noise_inner: b [T, n], products of noise and images.
        images: z [n, D].
        half_square: h [n].
        beta: [N*T], row n*T + t; 1 / s^2 for Gaussian noise.
        backend: "native" (CPU, float32), "reference" (torch), "matrix" (torch, all weights at once: for export), or
            "auto": native where it can run. Differentiable in ``inner`` (natively;
            the second time through the reference) and, by the reference, in everything.

    Returns:
        M [N*T, D].

    Raises:
        InputError: shapes or types that do not go together.
        ConfigError: no such backend, or "native" where it cannot run.
    """
    operands = inner, noise_inner, images, half_square, beta
    _check(*operands)
    if backend not in BACKENDS:
        raise ConfigError(f"backend: expected {', '.join(BACKENDS)}; got {shown(backend)}")
    if backend == "matrix":
        return empirical_denoiser_matrix(*operands)
    if backend == "reference":
        return empirical_denoiser_reference(*operands)
    reason = _why_not_native(*operands)
    if reason and backend == "native":
        raise ConfigError(f"backend: native kernels cannot run here: {reason}; use backend='auto'")
    return empirical_denoiser_reference(*operands) if reason else empirical_denoiser_native.forward_op(*operands)[0]


def _why_not_native(*operands: Tensor) -> str:
    reason = _native.why_not(operands[0].device.type)
    if reason:
        return reason
    if operands[0].device.type != "cpu":
        return "there are kernels for CPUs only"
    if any(tensor.dtype != torch.float32 for tensor in operands):
        return "they take float32"
    if transformed():
        return "a transformation of torch.func is at work"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in operands[1:]):
        return "they give the gradient of `inner` only"
    return ""


def _check(inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor) -> None:
    named = {"inner": inner, "noise_inner": noise_inner, "images": images, "half_square": half_square, "beta": beta}
    for name, tensor in named.items():
        ndim = 1 if name in ("half_square", "beta") else 2
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim != ndim:
            raise InputError(f"{name}: expected a float tensor of {ndim} dimensions; got {shown(tensor)}")
        if tensor.dtype != inner.dtype or tensor.device != inner.device:
            raise InputError(
                f"{name}: expected {inner.dtype} on {inner.device} like inner; got {tensor.dtype} on {tensor.device}"
            )
    count = images.shape[0]
    for name in ("inner", "noise_inner", "half_square"):
        if named[name].shape[-1] != count:
            raise InputError(f"{name}: expected {count} images in the last dimension; got {list(named[name].shape)}")
    if not count or beta.shape[0] != inner.shape[0] * noise_inner.shape[0]:
        raise InputError(
            f"beta: expected N*T = {inner.shape[0] * noise_inner.shape[0]} rows and at least one image; got "
            f"{list(beta.shape)} and {count} images"
        )
