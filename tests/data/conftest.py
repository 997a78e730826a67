"""No test here sees the user's data folders or the network."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home folder, and no data set settings or proxies in the environment."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    proxies = [f"{scheme}_proxy" for scheme in ("http", "https", "all")]
    for name in ("RDC_DATA", "RDC_FASHION_MNIST_URL", *proxies, *(name.upper() for name in proxies)):
        monkeypatch.delenv(name, raising=False)
    return home
