"""The page: one HTML file that holds all it shows and asks the network for nothing."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from fastlatent import __version__
from fastlatent.commands.comparison.choice import SEEDS, seeds_of
from fastlatent.commands.comparison.columns import Column
from fastlatent.commands.comparison.curves import chart_svg, charts_of, key_svg
from fastlatent.commands.comparison.pictures import KINDS, Picture, by_kind
from fastlatent.commands.comparison.subject import Subject

PARTS = Path(__file__).parent


def page(
    runs: Sequence[Subject],
    columns: Sequence[Column],
    first: Sequence[Column],  # those of them that stand at the top
    pictures: Sequence[Sequence[Picture]],
) -> str:
    """The whole page, with the pictures of each run."""
    labels = [run.label for run in runs]
    rows = by_kind(pictures)
    drawn = _gallery(labels, rows.pop("samples")) if "samples" in rows else ""
    sections = [_section("At a glance", _table(first, labels), _seeds(runs, first), drawn)]
    sections += [_section(KINDS[kind], _gallery(labels, row)) for kind, row in rows.items()]
    panels = charts_of(runs)
    if panels:
        figures = "".join(
            f'<figure class="panel"><figcaption>{escape(panel.title)} '
            f"<small>{escape(panel.loss)}</small></figcaption>{chart_svg(panel)}"
            '<div class="tip" hidden></div></figure>'
            for panel in panels
        )
        note = "<p class=aside>Thick with marks: test. Thin: training. Point for values.</p>"
        sections.append(
            _section("Curves", _legend(labels), f'<div class="panels">{figures}</div>', note)
        )
    folded = [
        f"<details><summary>{escape(group)}</summary>{_table([*part], labels)}</details>"
        for group, part in groupby(columns, lambda column: column.group)
    ]
    sections.append(_section("All numbers", *folded, _notes(columns)))
    title = " · ".join(labels) if len(labels) <= 3 else f"{len(labels)} runs side by side"
    return Template(_part("page.html")).substitute(
        title=escape(title),
        style=_part("style.css"),
        script=_part("script.js"),
        subjects=escape("; ".join(dict.fromkeys(run.subject for run in runs))),
        sections="\n".join(sections),
        version=escape(__version__),
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _gallery(labels: Sequence[str], row: Sequence[Sequence[Picture]]) -> str:
    shape = "pictures" + " broad" * any(picture.is_broad for run in row for picture in run)
    return f'<div class="{shape}">{"".join(_figures(labels, row))}</div>'


def _seeds(runs: Sequence[Subject], columns: Sequence[Column]) -> str:
    """Means of runs that differ in their seeds alone; nothing where there are none."""
    means, groups = seeds_of(runs, columns)
    if not means:
        return ""
    return f'<p class="aside">{SEEDS}:</p>{_table(means, groups, keys=False)}'


def _legend(labels: Sequence[str]) -> str:
    buttons = "".join(
        f'<button type="button" data-run="{place}" aria-pressed="true">{key_svg(place)}'
        f"{escape(label)}</button>"
        for place, label in enumerate(labels)
    )
    return f'<div class="legend">{buttons}</div>'


def _table(columns: Sequence[Column], labels: Sequence[str], keys: bool = True) -> str:
    """One row for each run; the groups of columns above their titles."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    spans = "".join(
        f'<th scope="colgroup" colspan="{count}" class="start"><span>{escape(group)}</span></th>'
        for group, count in groups
    )
    titles = [_title(Column("", "run"), "")]
    firsts = _firsts(columns)
    for column, first in zip(columns, firsts, strict=True):
        titles.append(_title(column, "start" * first))
    best = [column.best for column in columns]
    rows = []
    for place, label in enumerate(labels):
        key = key_svg(place) if keys else ""
        cells = [f'<th scope="row" data-value="{escape(label)}">{key}{escape(label)}</th>']
        for column, first, places in zip(columns, firsts, best, strict=True):
            cells.append(_cell(column, place, first, places.get(place), labels))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<div class="wide"><table><thead>'
        f'<tr><td class="corner"></td>{spans}</tr><tr>{"".join(titles)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _firsts(columns: Sequence[Column]) -> list[bool]:
    """Whether each column begins a group."""
    return [k == 0 or columns[k - 1].group != c.group for k, c in enumerate(columns)]


def _title(column: Column, classes: str) -> str:
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}[column.better]
    small = f"<small>{escape(column.unit)}</small>" if column.unit else ""
    classes += " text" * column.is_text
    return (
        f'<th scope="col" class="{classes}" title="{escape(column.note)}">'
        f'<button type="button">{escape(column.title)}{arrow}{small}</button></th>'
    )


def _cell(column: Column, place: int, first: bool, best: bool | None, labels: Sequence[str]) -> str:
    """A cell; best is None unless it holds the best value, then whether that is clear."""
    cell = column.cells[place]
    classes = ["start"] * first + ["text"] * column.is_text + ["best"] * (best is not None)
    opening = f'<td class="{" ".join(classes)}"'
    if cell is None:
        return f"{opening}></td>"
    value = cell.text if cell.value is None else cell.value
    # What is no number stays at the end of the order, as what is not there.
    order = "" if value != value else f' data-value="{escape(str(value))}"'
    number, sign, error = escape(cell.text).partition(" ± ")
    shown = f"{number}<small>{sign}{error}</small>" if sign else number
    star = ""
    if best is not None:
        rivals = next(cells for cells in column.compared if place in cells)
        among = escape(f"best of {', '.join(labels[rival] for rival in rivals)}", quote=True)
        star = f'<b title="{among}">{"★" if best else "☆"}</b>'
    return f'{opening}{order} title="{escape(cell.note)}">{star}{shown}</td>'


def _notes(columns: Sequence[Column]) -> str:
    notes = ["Click a heading to sort."]
    marks = {clear for column in columns for clear in column.best.values()}
    if marks:
        notes.append(
            "★ best of the runs that can be compared: same data and unit, same loss, same features "
            "of images stored alike."
        )
    if False in marks:
        notes.append("☆ best, but another is less than two standard errors away.")
    if any(cell is not None and cell.error for column in columns for cell in column.cells):
        notes.append("± standard error.")
    sources = dict.fromkeys(
        cell.note
        for column in columns
        for cell in column.cells
        if cell is not None and "features: " in cell.note
    )
    notes += [f"{escape(note[0].upper() + note[1:])}." for note in sources]
    return f'<p class="aside">{" ".join(notes)}</p>'


def _figures(labels: Sequence[str], row: Sequence[Sequence[Picture]]) -> Iterator[str]:
    for place, (label, pictures) in enumerate(zip(labels, row, strict=True)):
        for picture in pictures:
            words = f"{KINDS[picture.kind].lower()} of {label}"
            width, height = picture.size
            small = f"<small>{escape(picture.caption)}</small>" if picture.caption else ""
            yield (
                f"<figure><figcaption>{key_svg(place)}{escape(label)} {small}</figcaption>"
                f'<button type="button" class="zoom" aria-label="enlarge the {escape(words)}">'
                f'<img alt="{escape(words)}" width="{width}" height="{height}" '
                f'src="{picture.uri}"></button></figure>'
            )
        if not pictures:
            yield (
                f'<figure class="missing"><figcaption>{key_svg(place)}{escape(label)}'
                "</figcaption><p>no such picture</p></figure>"
            )
