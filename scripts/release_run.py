"""Trains lbae-digits and packs the run folder, without what only a resume needs: a release asset.

python scripts/release_run.py lbae-digits.tar.gz
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

LIMIT = 2_000_000  # bytes of the unpacked folder
LEFT_OUT = ("state", "best.safetensors", "events.*", "images/step-*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the .tar.gz file to write")
    target = parser.parse_args().target
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "lbae-digits"
        _fastlatent("train", "lbae-digits", "--out", run)
        for pattern in LEFT_OUT:
            for path in run.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _fastlatent("sample", run, "--n", "16", "--out", Path(scratch) / "works.png")
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        if size > LIMIT:
            sys.exit(f"error: the run folder has {size:,} bytes, more than {LIMIT:,}")
        with tarfile.open(target, "w:gz") as archive:
            archive.add(run, run.name)
    print(f"{target}: {size:,} bytes unpacked")


def _fastlatent(command: str, *arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", f"fastlatent.{command}", *map(str, arguments)], check=True
    )


if __name__ == "__main__":
    main()
