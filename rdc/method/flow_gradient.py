"""The gradient of log p(x|y) in the image, through the steps of the probability-flow ODE, for the (image, class) pairs that carry any.

checkpoint  the gradient of what is computed, exactly: the states between steps are computed again (F alone), then each step is rebuilt
            and differentiated in turn (Chen et al. 2016, arXiv 1604.06174). Memory is that of one step, and one image a step.
adjoint     the continuous adjoint (Chen et al. 2018, arXiv 1806.07366): image and adjoint run back from sigma_max by the same solver,

                dz/dtheta = -F        da/dtheta = grad_z (F . a + g div_z F)        a = g (-z) at sigma_max, g the upstream gradient.

            It is the gradient of the exact solution, solved inexactly: with few steps it is not the gradient of what was computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdc.execution.memory import bytes_per_item
from rdc.execution.surroundings import measured
from rdc.method.denoiser import Denoiser
from rdc.method.probability_flow import SOLVERS, FlowSettings, flow_slope, flow_step, trajectory

__all__ = ["SOLVER_GRADIENTS", "density_gradient", "step_bytes"]

SOLVER_GRADIENTS = ("checkpoint", "adjoint")


def density_gradient(
    denoiser: Denoiser, x: Tensor, labels: Tensor, flow: FlowSettings, probes: Tensor | None, upstream: Tensor, how: str
) -> Tensor:
    """sum_b upstream_b d log p(x_b|label_b) / dx.

    Args:
        denoiser, flow, probes: as of :func:`rdc.method.likelihood.flow_log_density`.
        x: [B, C, H, W] in [-1, 1].
        labels: [B] int64.
        upstream: [B].
        how: "checkpoint" or "adjoint".

    Returns:
        [B, C, H, W], without a graph.
    """
    scale = 1 / math.hypot(flow.sigma_min, denoiser.precondition.sigma_data)
    states = trajectory(denoiser, scale * x.detach(), labels, flow)
    backward = _through_solution if how == "adjoint" else _through_steps
    return scale * backward(denoiser, states, labels, flow, probes, upstream.detach())


def _through_steps(
    denoiser: Denoiser,
    states: list[Tensor],
    labels: Tensor,
    flow: FlowSettings,
    probes: Tensor | None,
    upstream: Tensor,
) -> Tensor:
    """The gradient in the first state: one step after another, from the last, on a graph of its own."""
    places = flow.places(denoiser.precondition.sigma_data)
    gradient = -upstream.view(-1, 1, 1, 1) * states[-1]  # of the prior's log-density
    for z, here, there in reversed(list(zip(states[:-1], places[:-1], places[1:], strict=True))):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            end, change = flow_step(denoiser, leaf, labels, flow, here, there, probes, True)
            (gradient,) = torch.autograd.grad([end, change], leaf, [gradient, -upstream])
    return gradient


def _through_solution(
    denoiser: Denoiser,
    states: list[Tensor],
    labels: Tensor,
    flow: FlowSettings,
    probes: Tensor | None,
    upstream: Tensor,
) -> Tensor:
    """The adjoint at sigma_min, by the solver itself run backwards."""
    solver, z = SOLVERS[flow.solver], states[-1]
    adjoint = -upstream.view(-1, 1, 1, 1) * z
    places = flow.places(denoiser.precondition.sigma_data)[::-1]
    for here, there in zip(places[:-1], places[1:], strict=True):
        step = there - here
        slopes: list[tuple[Tensor, Tensor]] = []
        for node, inner in zip(solver.nodes, solver.inner, strict=True):
            place = here + node * step
            state = _moved((z, adjoint), step, inner, slopes)
            pull, f = _pull(denoiser, *state, labels, place**flow.rho, probes, upstream)
            speed = flow.rho * place ** (flow.rho - 1)
            slopes.append((-speed * f, speed * pull))
        z, adjoint = _moved((z, adjoint), step, solver.outer, slopes)
    return adjoint


def _pull(
    denoiser: Denoiser,
    z: Tensor,
    adjoint: Tensor,
    labels: Tensor,
    theta: float,
    probes: Tensor | None,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """grad_z (F . adjoint + upstream div_z F) and F at one noise level."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        f, divergence = flow_slope(denoiser, leaf, labels, theta, probes, True)
        (pull,) = torch.autograd.grad((f * adjoint).sum() + (upstream * divergence).sum(), leaf)
    return pull, f.detach()


def _moved(
    state: tuple[Tensor, Tensor], step: float, weights: tuple[float, ...], slopes: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    z, adjoint = state
    for weight, (first, second) in zip(weights, slopes, strict=True):
        if weight:
            z, adjoint = z + step * weight * first, adjoint + step * weight * second
    return z, adjoint


@measured()
def step_bytes(denoiser: Denoiser, flow: FlowSettings, like: Tensor) -> int:
    """Peak bytes that one more row needs while one step is rebuilt and differentiated."""
    here, there = flow.places(denoiser.precondition.sigma_data)[:2]

    def work(count: int) -> Tensor:
        z = like.new_zeros(count, *denoiser.image_shape).requires_grad_()
        labels = torch.zeros(count, dtype=torch.long, device=like.device)
        signs = like.new_ones(1, *denoiser.image_shape)
        end, change = flow_step(denoiser, z, labels, flow, here, there, signs, True)
        return torch.autograd.grad(end.sum() + change.sum(), z)[0]

    return bytes_per_item(work)
