"""Where files are kept that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """FASTLATENT_CACHE, by default ~/.cache/fastlatent."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("FASTLATENT_CACHE") or Path(base, "fastlatent")).expanduser()
