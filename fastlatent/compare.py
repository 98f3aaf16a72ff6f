"""Put runs side by side, in a table and a page for the browser: `python -m fastlatent.compare`."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastlatent.commands.comparison import (
    SEEDS,
    chosen,
    columns_of,
    first_columns,
    page,
    rivals,
    screen_table,
    seeds_of,
    subjects,
)
from fastlatent.commands.comparison.pictures import Picture, pictures_of
from fastlatent.commands.console import command, parse
from fastlatent.commands.trained import named_code
from fastlatent.files.writing import written_whole
from fastlatent.jobs.progress import say, track
from fastlatent.runs.files import RESULTS

DESCRIPTION = """Compare runs: a table on the screen, and one page for the browser.

The page begins with five numbers and the samples. Reconstructions, interpolations, curves of the
losses and all numbers follow. It is one file and needs no network.

Numbers with standard errors come from evaluation.json, where evaluate has written it. The best
value is marked among runs that can be compared: same data, unit, loss and features. Runs that
differ in their seeds alone are averaged below the table.

Examples:
  python -m fastlatent.compare runs/vae-digits runs/bigan-digits
  python -m fastlatent.compare runs/* --columns FD recall --out page.html"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")] = ()
    """Run folders, as training or convert left them."""
    out: Path = Path("compare.html")
    """Page to write, an HTML file."""
    columns: tuple[str, ...] = ()
    """Words that are in the titles of the numbers to show; default: five at the top, then all."""
    model_from: str | None = None
    """Python file or installed module of the class, for runs of a model of your own; several with
    commas between them."""

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out must end in .html, the format of pages; got {self.out}")
        if not self.runs:
            raise ValueError("give at least one run folder")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, read the runs, print the table and write the page."""
    options = parse(Options, argv, "compare", DESCRIPTION)
    # What evaluations leave beside the runs, as in runs/*.
    runs = subjects(
        [path for path in options.runs if path.name != RESULTS], named_code(options.model_from)
    )
    columns = columns_of(runs)
    first = chosen(columns, options.columns) if options.columns else first_columns(columns)
    shown = first if options.columns else columns
    labels = [run.label for run in runs]
    say("\n".join(screen_table(shown, labels, screen_width())))
    say("* best of the runs that can be compared, ~ by less than two standard errors")
    for line in rivals(shown, labels):
        say(f"  among {line}")
    means, groups = seeds_of(runs, shown)
    if means:
        say("\n".join([SEEDS, *screen_table(means, groups, screen_width())]))
    pictures = [pictures_of(run) for run in track(runs, "pictures", len(runs), "run")]
    path = options.out.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(page(runs, columns, first, pictures), encoding="utf-8")
    say(f"page: {path}, {path.stat().st_size / 1e6:.2f} MB; {saving(pictures)}")


def screen_width() -> int:
    """Characters of a line on the screen; what is not a screen has room for several runs."""
    return shutil.get_terminal_size((160, 24)).columns


def saving(pictures: Sequence[Sequence[Picture]]) -> str:
    """How many pictures, and what packing them again without loss has saved."""
    every = [picture for run in pictures for picture in run]
    if not every:
        return "the runs hold no pictures"
    stored = sum(picture.stored for picture in every)
    kept = sum(picture.kept for picture in every)
    sizes = f"from {stored / 1e6:.2f} to {kept / 1e6:.2f} MB"
    return f"{len(every)} pictures, packed again without loss {sizes}"


if __name__ == "__main__":
    sys.exit(main())
