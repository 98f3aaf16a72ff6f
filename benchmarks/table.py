"""Prints the committed results as Markdown; `--write` puts the tables into benchmarks/README.md."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Goal(NamedTuple):
    """What is asked of our row, against another of the same work or by itself."""

    what: str
    rival: str | None  # None: our own time, memory or error is judged
    least: float  # times what ours takes; without a rival the most seconds, MiB or times, or error
    size: str = ""  # part of the sizes that are meant; all of them where it is empty
    device: str = "cpu"
    unit: str = "median"  # or "MiB", or without a rival "off"
    ours: str = "fastlatent"
    base: str = ""  # without a rival: the size of the row of ours that it is judged by


ROOTS, CONDITION = "trace_sqrtm", "condition 1e6"
SCIPY, EIGVALS = "scipy.linalg.sqrtm, as pytorch-fid", "eigvals of the product, as torchmetrics"
NEIGHBOURS, CURVES = "precision, recall, density, coverage", "Monte-Carlo improvement"
LIKELIHOOD = "mixture, K = 10, n = {}, c = 3: forward + backward"
COPY = "copy of as many bytes"
GOALS = (  # of several for one row the first counts
    Goal("binary_moments", "torch.mm float32", 15),
    Goal("binary_moments", "torch._int_mm int8", 1),
    Goal("binary_moments", "torch.mm float32", 8, ours="fastlatent from float32 codes"),
    Goal("copula fit and sample", "original procedure, NumPy", 20),
    Goal("binarize forward + backward", "eager", 2),
    Goal("binarize forward + backward", "torch.compile", 1),
    Goal("lbae-mnist training step", "reference ops", 1),
    Goal("lvae-cifar10-3 training step", "reference ops", 1),
    Goal(LIKELIHOOD.format(32), "eager", 12),
    Goal(LIKELIHOOD.format(32), "torch.compile", 15),
    Goal(LIKELIHOOD.format(4096), COPY, 0.7, device="cuda"),
    Goal("bspline forward + backward", "dense matmul", 2),
    Goal("metric, BiGAN decoder", "original procedure, 2 of the points", 300),
    Goal("metric, BiGAN decoder", "vmap(jacfwd)", 2),
    Goal(ROOTS, SCIPY, 8, size=CONDITION),
    Goal(ROOTS, SCIPY, 6),
    Goal(ROOTS, EIGVALS, 2.4, size=CONDITION),
    Goal(ROOTS, EIGVALS, 1.9),
    Goal(ROOTS, "Cholesky and eigvalsh by hand", 0.95),
    Goal(ROOTS, "torch.linalg.matrix_sqrth", 1),
    Goal(ROOTS, None, 0.020, size="2048 x 2048", device="cuda"),
    Goal(ROOTS, None, 1e-9, unit="off"),
    Goal(ROOTS, None, 1e-9, unit="off", device="cuda"),
    Goal("sqrtm_psd", "eigh by hand", 0.95),
    Goal("sqrtm_psd", "torch.linalg.matrix_sqrth", 1),
    Goal("Frechet distance", "by eigvals", 10),
    Goal("Frechet distance", "2,048 x 2,048 by ours", 10),
    Goal(NEIGHBOURS, "prdc", 5),
    Goal(NEIGHBOURS, "prdc", 10, unit="MiB"),
    Goal("kernel distance", "torch-fidelity", 5),
    Goal("glo step of 128 codes", "nn.Embedding, SparseAdam", 1),
    Goal("glo step of 128 codes", "nn.Embedding, dense Adam", 1),
    Goal("glo step of 128 codes", None, 1.3, size="1,000,000 codes", base="10,000 codes"),
    Goal("glo step of 128 codes", None, 8, size="1,000,000 codes", unit="MiB"),
    Goal("likely paths", "one pair at a time, 5 of the pairs", 100),
    Goal("full mixture, forward + backward", "MixtureSameFamily", 3, size="x 2,"),
    Goal("full mixture, forward + backward", "MixtureSameFamily", 2.5),
    Goal(CURVES, "published program, one of the pairs", 500),
    Goal(CURVES, "published program, 1 of 16 points of one of the pairs", 500),
    Goal(CURVES, None, 20, size="100 pairs"),
    Goal(CURVES, None, 2, size="1000 pairs", device="cuda"),
)
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def table(path: Path) -> str:
    """One section for a results file: the conditions, then a row for each implementation."""
    result = json.loads(path.read_text())
    machine, rows = result["machine"], result["rows"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        f"### {where}",
        "",
        f"{result['date'][:10]}, commit {result['commit'][:10]}, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['compiler']}, {machine['instructions']}; "
        f"`{result['command']}`. Times are medians with quartiles; the ratio is how many times "
        "as long the row takes as ours.",
        "",
        "| what | size | implementation | ms | quartiles | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        mark = "**" if row["implementation"] == "fastlatent" else ""
        more = f", off by {row['off']:.1g}" if "off" in row else ""
        if row.get("MiB") is not None:
            more = f", {row['MiB']:,} MiB"
        ratio = ratio_of(row, rows)
        lines.append(
            f"| {row['what']} | {row['size']} | {mark}{row['implementation']}{mark}{more} "
            f"| {1e3 * row['median']:.3g} | {1e3 * row['q1']:.3g} to {1e3 * row['q3']:.3g} "
            f"| {'' if ratio is None else f'{ratio:.3g}'} |"
        )
    judged = list(judgements(rows, "cpu" if machine["gpu"] is None else "cuda"))
    if judged:
        lines += ["", "| goal | wanted | measured | |", "| --- | --- | --- | --- |", *judged]
    return "\n".join(lines)


def ratio_of(
    row: dict, rows: list[dict], ours: str = "fastlatent", unit: str = "median"
) -> float | None:
    """How many times what ours takes; None where ours was not measured."""
    own = {
        one["size"]: one
        for one in rows
        if (one["what"], one["implementation"]) == (row["what"], ours)
    }
    # Where sizes are told apart by rivals only, ours is the one row there is.
    base = own.get(row["size"], next(reversed(own.values()), None))
    if base is None or not base.get(unit) or row.get(unit) is None:
        return None
    return row[unit] / base[unit]


def judgements(rows: list[dict], device: str) -> Iterator[str]:
    """Rows of the table of goals: those of that device, as far as they were measured."""
    seen = set()
    for goal in GOALS:
        for row in rows:
            chosen = (row["what"], row["implementation"]) == (goal.what, goal.rival or goal.ours)
            case = (goal.what, row["size"], goal.rival, goal.ours, goal.unit, goal.base)
            if goal.device != device or not chosen or goal.size not in row["size"] or case in seen:
                continue
            name = f"{goal.what}, {row['size']}"
            if goal.rival is None:
                took = by_itself(goal, row, rows)
                if took is None:
                    continue
                unit = "x" if goal.base else "s" if goal.unit == "median" else goal.unit
                name += f" against {goal.base}" if goal.base else ""
                if unit == "off":
                    wanted, found = f"off by at most {goal.least:g}", f"{took:.1g}"
                else:
                    wanted, found = f"at most {goal.least:g} {unit}", f"{took:.3g} {unit}"
                met = took <= goal.least
            else:
                ratio = ratio_of(row, rows, goal.ours, goal.unit)
                if ratio is None:
                    continue
                name += "" if goal.ours == "fastlatent" else f", {goal.ours}"
                name += (
                    f", MiB against {goal.rival}"
                    if goal.unit == "MiB"
                    else f" against {goal.rival}"
                )
                wanted, found, met = f"{goal.least:g} x", f"{ratio:.3g} x", ratio >= goal.least
            seen.add(case)
            yield f"| {name} | {wanted} | {found} | {'met' if met else '**missed**'} |"


def by_itself(goal: Goal, row: dict, rows: list[dict]) -> float | None:
    """What our row takes, or how many times what ours of the base takes; None if not measured."""
    if not goal.base:
        return row.get(goal.unit)
    for one in rows:
        if (one["what"], one["implementation"], one["size"]) == (goal.what, goal.ours, goal.base):
            return row[goal.unit] / one[goal.unit]
    return None


def main() -> None:
    tables = "\n\n".join(table(path) for path in sorted((HERE / "results").glob("*.json")))
    if "--write" not in sys.argv:
        print(tables)
        return
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


if __name__ == "__main__":
    main()
