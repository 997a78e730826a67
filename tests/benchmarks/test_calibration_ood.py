"""The table of calibration in docs/calibration.md is that of the kept file, and its scores are those of their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.studies import calibration_ood
from rdc.storage.json_files import read_json
from tests.tolerances import FLOAT64_ORDER

ROOT = Path(__file__).resolve().parents[2]


def test_document_has_the_kept_figures() -> None:
    _, _, rest = (ROOT / "docs/calibration.md").read_text().partition(calibration_ood.BEGIN)
    assert rest.partition(calibration_ood.END)[0].strip() == calibration_ood.table().strip()


def test_rows_are_complete() -> None:
    for name, row in read_json(calibration_ood.RESULTS).items():
        assert row["model"] == calibration_ood.ROWS[name].model and row["n"] == calibration_ood.images_of(name)
        assert row["fitted_on"] == min(calibration_ood.HELD_OUT, row["n"]) >= 200
        assert 0 <= row["ece"]["fitted"] <= 1 and all(0 <= value <= 1 for value in row["auroc"].values())


def test_logsumexp_of_large_logits() -> None:
    logits = np.array([[1000.0, 1000.0, -1000.0], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(
        calibration_ood._logsumexp(logits), [1000 + np.log(2), np.log(1 + np.e + np.e**2)], rtol=FLOAT64_ORDER
    )
