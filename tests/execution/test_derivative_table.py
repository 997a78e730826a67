"""Every public function that leaves PyTorch's operators, under every way of asking for a derivative: the right one, or an error that says
what to do.

A row of the table is a subject, a column a way (``WAYS``); ``REFUSED`` lists the cells that are errors. Truth is float64: the reference
by plain autograd, or its central differences.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from rdc.errors import InputError, RdcError
from rdc.method.class_gradients import rebuilt, streamed
from rdc.method.draw import Draw
from rdc.method.likelihood_maximization import LikelihoodMaximization, lm_penalty, maximize_likelihood
from rdc.networks import fused
from rdc.ops import _native
from rdc.ops.multihead_gram import multihead_loss_gram
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from tests.ops.test_multihead_loss import make
from tests.tiny_models import pixels, tiny_classifier, tiny_denoiser

TRITON = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"


class Subject(NamedTuple):
    """``function(*operands)`` in float32, its float64 ``reference``, and how far apart they may be."""

    function: Callable
    reference: Callable
    operands: list[torch.Tensor]
    tolerance: float = 2e-5


# --- Rows -----------------------------------------------------------------------------------------------------------------------------


def loss(backend: str, fixed_levels: bool = False) -> Subject:
    operands, _ = make((2, 2, 8, 4, 3, 3, 2))
    levels = operands[4]

    def function(*x):
        given = x if not fixed_levels else (*x, levels)
        if backend == "gram itself":
            return multihead_loss_gram(*given)
        return multihead_loss(*given, backend=backend)

    def reference(*x):
        return multihead_loss_reference(*x, *([levels.double()] if fixed_levels else []))

    return Subject(function, reference, operands[:4] if fixed_levels else operands)


def norm(function: Callable) -> Subject:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 2, generator=g).contiguous(memory_format=torch.channels_last)
    vectors = [torch.randn(8, generator=g) for _ in range(2)]
    conditions = [torch.randn(2, 8, generator=g) for _ in range(3)]

    def of(norm_act):
        return lambda x, weight, bias, *rest: norm_act(x, weight, bias, 2, 1e-5, *rest)

    return Subject(of(function), of(fused.norm_act_reference), [x, *vectors, *conditions])


def residual(function: Callable) -> Subject:
    g = torch.Generator().manual_seed(1)
    x, skip = (torch.randn(2, 8, 3, 2, generator=g).contiguous(memory_format=torch.channels_last) for _ in range(2))

    def of(residual_sum):
        return lambda x, skip, bias: residual_sum(x, skip, bias, 0.7).square()  # a sum alone has no second derivative

    plain = of(lambda x, skip, bias, factor: factor * (x + skip + bias[:, None, None]))
    return Subject(of(function), plain, [x, skip, torch.randn(8, generator=g)])


STEPS = LikelihoodMaximization(
    steps=2, sign=False, normalize="mean_abs", step_size=0.02, eta=0.03, sigma_range=(0.4, 0.6)
)


def pieces(function: Callable, kind: str) -> Subject:
    """Losses of x0, sigma, level weights and noise, by pieces of one pair."""
    single, double = (tiny_denoiser(kind, dtype).requires_grad_(False) for dtype in (torch.float32, torch.float64))
    g = torch.Generator().manual_seed(2)
    x0, noise = 2 * pixels(2) - 1, torch.randn(2, *single.image_shape, generator=g)
    sigma, weight = torch.tensor([0.6, 1.3]), torch.tensor([0.7, 0.4])
    return Subject(
        lambda x0, *draw: function(single, x0, Draw(*draw), 1),
        lambda x0, *draw: double.class_losses(x0, Draw(*draw)),
        [x0, sigma, weight, noise],
        1e-4,
    )


def uphill(function: Callable, plain: Callable, kind: str) -> Subject:
    single, double = (tiny_denoiser(kind, dtype).requires_grad_(False) for dtype in (torch.float32, torch.float64))
    return Subject(lambda x: function(single, x), lambda x: plain(double, x), [2 * pixels(2) - 1], 2e-4)


def classifier(kind: str, lm: LikelihoodMaximization | None, budget: float | None, method: str) -> Subject:
    """``budget`` 0.2: one pair of image and level at a time."""
    settings = {"levels": "log:2:0.5:1:flat", "lm": lm}
    single = tiny_classifier(kind, memory_budget_mb=budget, **settings)
    double = tiny_classifier(kind, torch.float64, memory_budget_mb=1e5, **settings)
    return Subject(getattr(single, method), getattr(double, method), [pixels(2)], 5e-4)


def climb(denoiser, x):
    return maximize_likelihood(denoiser, x, STEPS)


def penalty(denoiser, x):
    return lm_penalty(denoiser, x, STEPS, 0, 1)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "reference": lambda: loss("reference"),
    "native": lambda: loss("native"),
    "auto": lambda: loss("auto"),
    "triton": lambda: loss("triton"),
    "gram": lambda: loss("gram"),
    "gram, levels fixed": lambda: loss("gram", True),
    "gram itself": lambda: loss("gram itself"),
    "norm and SiLU": lambda: norm(fused.norm_act),
    "norm and SiLU, reference": lambda: norm(fused.norm_act_reference),
    "residual sum": lambda: residual(fused.residual_sum),
    "residual sum, reference": lambda: residual(fused.residual_sum_reference),
    "pieces, conditional": lambda: pieces(streamed, "conditional"),
    "pieces, multi-head": lambda: pieces(streamed, "multihead"),
    "by class, conditional": lambda: pieces(rebuilt, "conditional"),
    "by class, multi-head": lambda: pieces(rebuilt, "multihead"),
    "LM": lambda: uphill(climb, climb, "conditional"),
    "LM's objective": lambda: uphill(penalty, penalty, "multihead"),
    "conditional": lambda: classifier("conditional", None, None, "forward"),
    "conditional, small budget": lambda: classifier("conditional", None, 0.2, "forward"),
    "conditional, LM, small budget": lambda: classifier("conditional", STEPS, 0.2, "class_losses"),
    "multi-head": lambda: classifier("multihead", None, None, "class_losses"),
    "multi-head, small budget": lambda: classifier("multihead", None, 0.2, "forward"),
    "multi-head, LM": lambda: classifier("multihead", STEPS, None, "forward"),
}
NEEDS_TRITON = ("triton", "norm and SiLU", "residual sum")

# --- Columns: what a way gives for function f of operands x with tangents v, upstream u -------------------------------------------------


def squared(f, u):
    """A number whose second derivative is none of zero."""
    return lambda *x: (f(*x).square() * u).sum()


def rows(out):
    return out.reshape(len(out), -1).sum(1)


def leaves(x):
    return [t.detach().clone().requires_grad_() for t in x]


def autograd(f, x, v, u):
    x = leaves(x)
    return torch.autograd.grad(squared(f, u)(*x), x)


def func_grad(f, x, v, u):
    return torch.func.grad(squared(f, u), argnums=tuple(range(len(x))))(*x)


def func_jvp(f, x, v, u):
    return [torch.func.jvp(f, tuple(x), tuple(v))[1]]


def dual_numbers(f, x, v, u):
    with forward_ad.dual_level():
        return [forward_ad.unpack_dual(f(*map(forward_ad.make_dual, x, v))).tangent]


def vmap(f, x, v, u):
    """Over a batch of the first operand, its last dimension."""
    both = torch.stack([x[0], x[0] + 0.01 * v[0]], -1)
    return [torch.func.vmap(lambda first: f(first, *x[1:]), in_dims=-1)(both)]


def vmap_grad(f, x, v, u):
    both = torch.stack([x[0], x[0] + 0.01 * v[0]])
    return [torch.func.vmap(torch.func.grad(lambda first: squared(f, u)(first, *x[1:])))(both)]


def jacrev(f, x, v, u):
    """Of few outputs, in the last operand."""
    return [torch.func.jacrev(lambda last: rows(f(*x[:-1], last) * u), chunk_size=1)(x[-1])]


class Holder(nn.Module):
    """A function whose operands are parameters."""

    def __init__(self, f, x):
        super().__init__()
        self.f, self.operands = f, nn.ParameterList(x)

    def forward(self):
        return self.f(*self.operands)


def functional_call(f, x, v, u):
    holder, named = Holder(f, x), {f"operands.{i}": t for i, t in enumerate(x)}

    def number(named):
        return (torch.func.functional_call(holder, named, ()).square() * u).sum()

    return list(torch.func.grad(number)(named).values())


def double_backward(f, x, v, u):
    x = leaves(x)
    first = torch.autograd.grad(squared(f, u)(*x), x, create_graph=True)
    return torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, v, strict=True)), x)


def forward_over_reverse(f, x, v, u):
    return torch.func.jvp(torch.func.grad(squared(f, u), argnums=tuple(range(len(x)))), tuple(x), tuple(v))[1]


def dual_over_backward(f, x, v, u):
    """A dual upstream gradient meets a backward pass whose forward pass knew of none."""
    x = leaves(x)
    out = f(*x)
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, x, forward_ad.make_dual(torch.ones_like(out), u.expand_as(out).contiguous()))
        return [forward_ad.unpack_dual(g).tangent for g in grads]


def compiled(f, x, v, u):
    torch._dynamo.reset()
    return autograd(torch.compile(f, backend="aot_eager"), x, v, u)


def compiled_jvp(f, x, v, u):
    torch._dynamo.reset()
    return [torch.compile(lambda *x: torch.func.jvp(f, x, tuple(v))[1], backend="aot_eager")(*x)]


def batch_of_upstreams(f, x, v, u):
    x = leaves(x)
    out = f(*x)
    return torch.autograd.grad(
        out, x, torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)]), is_grads_batched=True
    )


# --- Truth ------------------------------------------------------------------------------------------------------------------------------


def difference(f, x, v, h=1e-5):
    """Central differences of a function that returns a list."""
    ends = [f([t + sign * h * w for t, w in zip(x, v, strict=True)]) for sign in (1, -1)]
    return [(a - b) / (2 * h) for a, b in zip(*ends, strict=True)]


def tangent(f, x, v, u):
    with torch.no_grad():
        return difference(lambda x: [f(*x)], x, v)


def curvature(f, x, v, u):
    return difference(lambda x: list(autograd(f, x, v, u)), x, v)


def values(f, x, v, u):
    return [torch.stack([f(first, *x[1:]) for first in (x[0], x[0] + 0.01 * v[0])])]


def gradients(f, x, v, u):
    """Of the first operand, at two places."""
    return [torch.stack([autograd(f, [first, *x[1:]], v, u)[0] for first in (x[0], x[0] + 0.01 * v[0])])]


def jacobian(f, x, v, u):
    last = x[-1].clone().requires_grad_()
    numbers = rows(f(*x[:-1], last) * u)
    return [torch.stack([torch.autograd.grad(number, last, retain_graph=True)[0] for number in numbers])]


def pulled(f, x, v, u):
    x = leaves(x)
    out = f(*x)
    return torch.autograd.grad(out, x, u.expand_as(out))


def pulled_twice(f, x, v, u):
    x = leaves(x)
    return [torch.stack([g, 2 * g]) for g in torch.autograd.grad(f(*x).sum(), x)]


WAYS: dict[str, tuple[Callable, Callable]] = {
    "autograd.grad": (autograd, autograd),
    "func.grad": (func_grad, autograd),
    "func.jvp": (func_jvp, tangent),
    "forward_ad": (dual_numbers, tangent),
    "func.vmap": (vmap, values),
    "vmap of grad": (vmap_grad, gradients),
    "func.jacrev": (jacrev, jacobian),
    "functional_call": (functional_call, autograd),
    "double backward": (double_backward, curvature),
    "jvp of grad": (forward_over_reverse, curvature),
    "forward_ad through backward": (dual_over_backward, pulled),
    "compile": (compiled, autograd),
    "jvp in compile": (compiled_jvp, tangent),
    "is_grads_batched": (batch_of_upstreams, pulled_twice),
}

LEVELS = (InputError, "no gradient in level_weight; use backend='auto' or level_weight.detach")
BATCH = (RdcError, "one upstream gradient at a time; got a batch .*Use torch.func.jacrev")
#: PyTorch's own words about a graph of PyTorch's own operators
DUAL = (NotImplementedError, "forward AD with aten::silu_backward that does not support it")
LEGACY = (
    RuntimeError,
    "NYI: querying is_contiguous inside of vmap for memory_format other than torch.contiguous_format",
)
#: subjects whose graphs are of the CPU's kernels, where there are any: a batch of upstream gradients is refused by our words
KERNELS = () if _native.why_not("cpu") else ("pieces, conditional", "by class, conditional", "conditional")
#: and these, whose backward pass the kernels' functions answer under forward mode
ANSWERED = (
    ("LM's objective", "conditional", "multi-head", "multi-head, small budget", "multi-head, LM")
    if _native.why_not("cpu")
    else ()
)
#: the cells that are errors; every other one is right
REFUSED = {
    **{
        (name, way): LEVELS
        for name in ("gram", "gram itself")
        for way in WAYS
        if way not in ("func.vmap", "vmap of grad") and (name, way) != ("gram", "jvp in compile")
    },
    **{
        (name, "is_grads_batched"): BATCH
        for name in (
            "native",
            "auto",
            "triton",
            "gram, levels fixed",
            "norm and SiLU",
            "pieces, multi-head",
            "by class, multi-head",
            "LM",
            *KERNELS,
            "conditional, small budget",
            "conditional, LM, small budget",
            "multi-head",
            "multi-head, small budget",
            "multi-head, LM",
        )
    },
    ("norm and SiLU, reference", "is_grads_batched"): LEGACY,
    ("LM's objective", "is_grads_batched"): LEGACY if _native.why_not("cpu") else BATCH,
    **{
        (name, "forward_ad through backward"): DUAL
        for name in (
            "norm and SiLU, reference",
            "pieces, conditional",
            "pieces, multi-head",
            "by class, conditional",
            "by class, multi-head",
        )
    },
    **{(name, "forward_ad through backward"): DUAL for name in ANSWERED},
}

#: networks take their time: these cells of theirs always run
FAST = {
    "by class, conditional": ("func.grad", "func.jvp", "functional_call"),
    "LM": ("double backward",),
    "conditional, small budget": ("func.vmap", "forward_ad", "is_grads_batched"),
    "multi-head, LM": ("func.grad", "func.jvp", "vmap of grad"),
}


def slow(name: str, way: str) -> bool:
    if list(SUBJECTS).index(name) >= list(SUBJECTS).index("pieces, conditional"):
        return way not in FAST.get(name, ())
    return "compile" in way and (name, way) not in (("native", "compile"), ("native", "jvp in compile"))


def cells():
    for name in SUBJECTS:
        for way in WAYS:
            marks = [pytest.mark.slow] if slow(name, way) else []
            if name in NEEDS_TRITON and not TRITON:
                marks.append(
                    pytest.mark.skip(reason="needs Triton's interpreter: test_rows_of_triton_in_the_interpreter")
                )
            if name in ("norm and SiLU", "residual sum") and "compile" in way:
                marks.append(pytest.mark.skip(reason="what is compiled is left to PyTorch: fused.usable"))
            if name == "native" and _native.why_not("cpu"):
                marks.append(pytest.mark.skip(reason=_native.why_not("cpu")))
            yield pytest.param(name, way, id=f"{name} | {way}", marks=marks)


@functools.cache
def subject_of(name: str) -> Subject:
    return SUBJECTS[name]()


@pytest.mark.parametrize("name, way", list(cells()))
def test_cell(name, way):
    subject = subject_of(name)
    ask, truth = WAYS[way]
    g = torch.Generator().manual_seed(9)
    x = subject.operands
    v = [torch.randn(t.shape, generator=g) for t in x]
    with torch.no_grad():
        out = subject.function(*x)
    u = torch.linspace(0.5, 1.5, out[:1].numel()).view_as(out[:1])
    if (name, way) in REFUSED:
        error, text = REFUSED[name, way]
        with pytest.raises(error, match=text):
            ask(subject.function, x, v, u)
        return
    found = ask(subject.function, x, v, u)
    expected = truth(subject.reference, [t.double() for t in x], [t.double() for t in v], u.double())
    assert len(found) == len(expected)
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a is not None, place
        assert a.shape == b.shape and b.abs().max() > 0
        assert (a - b).norm() <= subject.tolerance * b.norm(), (place, ((a - b).norm() / b.norm()).item())


@pytest.mark.slow
@pytest.mark.skipif(TRITON, reason="this is the process inside")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_rows_of_triton_in_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    words += ["-k", "test_cell and (triton or SiLU or residual)"]
    done = subprocess.run(words, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
