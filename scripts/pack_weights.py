"""Packs trained runs as weights that are found by name, in half precision, and measures them anew.

python scripts/pack_weights.py fastlatent/weights runs/lbae-digits runs/vae-digits

What hangs on the weights is made again with the rounded ones: counts of codes, fitted priors, the
evaluation. A run whose test loss changes by 0.1 % or more is not packed.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastlatent
from fastlatent.runs import Run
from fastlatent.runs.files import fingerprint, read_tensors, write_tensors
from fastlatent.runs.log import read_metrics
from fastlatent.runs.named import pack

TOLERATED = 1e-3  # change of the test loss, as a share of it
PRIORS = {"vae-digits": "gmm", "glo-digits": "gmm"}  # fitted and packed, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the folder of packed weights to write into")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--data", type=Path, help="where the data sets are")
    arguments = parser.parse_args()
    for path in arguments.runs:
        size = _packed(path, arguments.target / Run.open(path).config.name, arguments.data)
        print(f"{path}: {size:,} bytes")


def _packed(path: Path, target: Path, root: Path | None) -> int:
    """The size of the new packed folder of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = fastlatent.load(path, root=root).save(Path(scratch) / "whole")
        before = _test_loss(fastlatent.load(whole, root=root).evaluate(features="none"))
        folder = Path(scratch) / target.name
        files = _rounded(Run.open(path), folder)
        trained = fastlatent.load(folder, root=root)
        if trained.model.latent_kind == "bits":
            trained.sample(1)
            files += ["codes.safetensors"]
        if target.name in PRIORS:
            trained.fit_prior(PRIORS[target.name])
            files += [f"prior-{PRIORS[target.name]}.safetensors"]
        after = _test_loss(trained.evaluate())
        if abs(after - before) >= TOLERATED * abs(before):
            sys.exit(f"error: {path} has a test loss of {before}, rounded {after}")
        print(f"{path}: test loss {before:.4f}, rounded {after:.4f}")
        shutil.rmtree(target, ignore_errors=True)
        pack(folder, target, (*files, "evaluation.json"))
    return sum(file.stat().st_size for file in target.iterdir())


def _rounded(run: Run, folder: Path) -> list[str]:
    """Write a run folder with rounded weights; the names of its files."""
    folder.mkdir()
    new = Run(folder, replace(run.config, data=replace(run.config.data, root=None)))
    new.write_config()
    files = ["config.json", "weights.safetensors"]
    write_tensors(folder / "weights.safetensors", _halved(run.path / "weights.safetensors"))
    latents = run.path / "latents.safetensors"
    if latents.is_file():
        mark = {"weights": fingerprint(folder / "weights.safetensors")}
        write_tensors(folder / latents.name, _halved(latents), mark)
        files.append(latents.name)
    lines = [json.dumps(line) for line in read_metrics(run.path) if line["kind"] == "test"]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return [*files, "metrics.jsonl"]


def _halved(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, those of float32 rounded to float16 as far as that holds them."""
    return {name: _rounded_tensor(tensor) for name, tensor in read_tensors(path)[0].items()}


def _rounded_tensor(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half().float() if tensor.dtype == torch.float32 else tensor
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def _test_loss(evaluation: dict[str, Any]) -> float:
    return float(evaluation["values"]["loss"]["mean"])


if __name__ == "__main__":
    main()
