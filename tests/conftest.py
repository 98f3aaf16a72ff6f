"""What all tests share: where the real data lies, and a fresh choice of implementation."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that FASTLATENT_DATA names; tests that need it skip without."""
    root = os.environ.get("FASTLATENT_DATA")
    if not root:
        pytest.skip("FASTLATENT_DATA is not set")
    return Path(root)
