"""Which tests ought to notice a change of which module: the quickest first."""

from __future__ import annotations

__all__ = ["LOADED", "TARGETS", "tests_of"]

#: modules of ours that import none of these
LOADED = (
    "rdc.arguments.seeds", "rdc.arguments.class_names", "rdc.errors", "rdc.execution.frozen", "rdc.execution.memory",
    "rdc.execution.opaque", "rdc.execution.surroundings", "rdc.images.pixels", "rdc.networks.presets", "rdc.ops.multihead_loss",
    "rdc.statistics.proportions", "rdc.storage.json_files", "rdc.storage.reading", "rdc.storage.sealed",
)  # fmt: skip

_METHOD, _EVALUATION = "tests/method/test_", "tests/evaluation/test_"

#: module -> its tests (files or tests of them)
TARGETS: dict[str, list[str]] = {
    "rdc/method/class_gradients.py": [f"{_METHOD}class_gradients.py"],
    "rdc/method/classifier.py": [f"{_METHOD}classifier.py"],
    "rdc/method/denoiser.py": [f"{_METHOD}classifier.py::test_losses_follow_the_equation", f"{_METHOD}classifier.py"],
    "rdc/method/levels.py": [f"{_METHOD}levels.py"],
    "rdc/method/likelihood_maximization.py": [f"{_METHOD}likelihood_maximization.py"],
    "rdc/method/noise.py": [f"{_METHOD}noise.py"],
    "rdc/method/posterior.py": [f"{_METHOD}posterior.py"],
    "rdc/method/preconditioning.py": [f"{_METHOD}preconditioning.py"],
    "rdc/method/sampling.py": [f"{_METHOD}sampling.py"],
    "rdc/evaluation/answers.py": ["tests/decisions/test_answers.py"],
    "rdc/evaluation/attacking.py": [f"{_EVALUATION}boundaries.py", f"{_EVALUATION}flags.py"],
    "rdc/evaluation/batch.py": [f"{_EVALUATION}boundaries.py", f"{_EVALUATION}flags.py"],
    "rdc/evaluation/comparison.py": [f"{_EVALUATION}comparison.py"],
    "rdc/evaluation/flag_checks.py": [f"{_EVALUATION}boundaries.py", f"{_EVALUATION}flags.py"],
    "rdc/evaluation/folder.py": ["tests/storage/test_run_folders.py", f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/records.py": [f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/results.py": [f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/run.py": [f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/sanity.py": [f"{_EVALUATION}flags.py"],
    "rdc/evaluation/settings.py": [f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/summary.py": [f"{_EVALUATION}boundaries.py"],
    "rdc/attacks/apgd.py": ["tests/attacks/test_apgd.py"],
    "rdc/norm_balls.py": ["tests/test_norm_balls.py"],
    "rdc/training/first_order.py": ["tests/training/test_first_order.py"],
}


def tests_of(module: str) -> list[str]:
    return TARGETS[module]
