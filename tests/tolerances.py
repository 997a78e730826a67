"""Tolerances that several tests share, each with its reason (relative to the largest value compared, unless said otherwise)."""

#: float32 sums of a few thousand squares in another order (chunking, batch size): a few hundred ulps.
FLOAT32_ORDER = 2e-5
#: the same in float64
FLOAT64_ORDER = 1e-12
#: central differences in float64 with step 1e-5: truncation h^2 and cancellation 1e-16 / h, with room for curvature.
CENTRAL_DIFFERENCE = 1e-6
#: parity with networks recorded in float32 (issue: 1e-5 relative).
EDM_PARITY = 1e-5
#: class losses and log-probabilities of an exported file (issue: 1e-5 relative): sums in onnxruntime's order.
ONNX_PARITY = 1e-5
#: pixels after likelihood maximisation, absolute: steps that divide by a mean gradient carry rounding on; PyTorch's float32 is
#: itself up to 1.3e-5 from float64 after two steps of a tiny network. A fiftieth of an 8-bit step.
ONNX_LM_PIXELS = 5e-5


def close(a, b, tolerance: float) -> None:
    """Two tensors of one shape agree, relative to the largest value of the second."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-30), (a, b)
