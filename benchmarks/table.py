"""Prints the committed results as Markdown; `--write` puts the tables into benchmarks/README.md."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOALS = (  # what, rival, how many times as long it has to take at least
    ("binary_moments", "torch.mm float32", 15),
    ("binary_moments", "torch._int_mm int8", 1),
    ("copula fit and sample", "original procedure, NumPy", 20),
    ("binarize forward + backward", "eager", 2),
    ("binarize forward + backward", "torch.compile", 1),
    ("lbae-mnist training step", "reference ops", 1),
    ("lvae-cifar10-3 training step", "reference ops", 1),
    ("mixture, K = 10, n = 32, c = 3: forward + backward", "eager", 12),
    ("mixture, K = 10, n = 32, c = 3: forward + backward", "torch.compile", 15),
    ("bspline forward + backward", "dense matmul", 2),
    ("metric, BiGAN decoder", "original procedure, 2 of the points", 300),
    ("metric, BiGAN decoder", "vmap(jacfwd)", 2),
    ("trace_sqrtm", "scipy.linalg.sqrtm, as pytorch-fid", 6),
    ("trace_sqrtm", "eigvals of the product, as torchmetrics", 1.9),
    ("trace_sqrtm", "Cholesky and eigvalsh by hand", 0.95),
    ("trace_sqrtm", "torch.linalg.matrix_sqrth", 1),
    ("Frechet distance", "by eigvals", 10),
    ("precision, recall, density, coverage", "prdc", 5),
    ("kernel distance", "torch-fidelity", 5),
    ("glo step of 128 codes", "nn.Embedding, SparseAdam", 1),
    ("glo step of 128 codes", "nn.Embedding, dense Adam", 1),
    ("likely paths", "one pair at a time, 5 of the pairs", 100),
    ("full mixture, forward + backward", "MixtureSameFamily", 2.5),
    ("Monte-Carlo improvement", "published program, one of the pairs", 500),
)
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def table(path: Path) -> str:
    """One section for a results file: the conditions, then a row for each implementation."""
    result = json.loads(path.read_text())
    machine = result["machine"]
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
    rows = result["rows"]
    own = [row for row in rows if row["implementation"] == "fastlatent"]
    ours = {row["what"]: row["median"] for row in own}
    ours |= {(row["what"], row["size"]): row["median"] for row in own}

    def ratio_of(row: dict) -> float:
        return row["median"] / ours.get((row["what"], row["size"]), ours[row["what"]])

    for row in rows:
        mark = "**" if row["implementation"] == "fastlatent" else ""
        more = f", off by {row['off']:.1g}" if "off" in row else ""
        if row.get("MiB") is not None:
            more = f", {row['MiB']:,} MiB"
        lines.append(
            f"| {row['what']} | {row['size']} | {mark}{row['implementation']}{mark}{more} "
            f"| {1e3 * row['median']:.3g} | {1e3 * row['q1']:.3g} to {1e3 * row['q3']:.3g} "
            f"| {ratio_of(row):.3g} |"
        )
    lines += ["", "| goal | at least | measured | |", "| --- | --- | --- | --- |"]
    goals = [
        (f"{what}, {row['size']}", rival, least, ratio_of(row))
        for what, rival, least in GOALS
        for row in rows
        if (row["what"], row["implementation"]) == (what, rival)
    ]
    median = {(row["what"], row["implementation"]): row["median"] for row in rows}
    packed = median.get(("binary_moments", "fastlatent from float32 codes"))
    if packed is not None:
        with_packing = median["binary_moments", "torch.mm float32"] / packed
        goals.append(("binary_moments, packing included", "torch.mm float32", 8, with_packing))
    for what, rival, least, measured in goals:
        verdict = "met" if measured >= least else "**missed**"
        lines.append(f"| {what} against {rival} | {least} | {measured:.3g} | {verdict} |")
    return "\n".join(lines)


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
