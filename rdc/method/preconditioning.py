"""EDM preconditioning: what the network sees, and what it is asked to predict.

Source: Karras et al. 2022, arXiv 2206.00364, section 5 and table 1. With data standard deviation ``sd``:

    D(x; s, y) = c_skip x + c_out F(c_in x; c_noise, y)
    c_skip = sd^2 / (s^2 + sd^2)      c_out = s sd / sqrt(s^2 + sd^2)
    c_in   = 1 / sqrt(s^2 + sd^2)     c_noise = ln(s) / 4

The training loss of EDM weights ``||D - x0||^2`` by ``1 / c_out^2``, which is exactly ``||F - F*||^2`` with
``F* = (x0 - c_skip x) / c_out``. rdc works in this F-space throughout: every term is of order one, whatever s.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rdc.networks.bounds import check_sigma_data

__all__ = ["Preconditioning"]


@dataclass(frozen=True)
class Preconditioning:
    """EDM preconditioning for data of standard deviation ``sigma_data`` (in [-1, 1] units).

    All methods take ``sigma`` as a float tensor of any shape and return a tensor of that shape.

    Raises:
        ConfigError: see :func:`rdc.networks.bounds.check_sigma_data`.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_sigma_data(self.sigma_data)

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def target(self, x0: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """F* = (x0 - c_skip x_t) / c_out.

        Args:
            x0: clean images [..., C, H, W] in [-1, 1].
            x_t: noisy images x0 + sigma * noise, same shape.
            sigma: noise levels, broadcastable against x0.
        """
        return (x0 - self.c_skip(sigma) * x_t) / self.c_out(sigma)

    def denoised(self, f: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """D = c_skip x_t + c_out F, the estimate of x0, shaped like ``x_t``."""
        return self.c_skip(sigma) * x_t + self.c_out(sigma) * f
