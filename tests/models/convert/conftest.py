"""Fixtures of the conversion tests."""

from __future__ import annotations

import pytest

from tests.models.convert import edm_files


@pytest.fixture
def edm_modules():
    """See ``edm_files.edm_modules``."""
    with edm_files.edm_modules():
        yield
