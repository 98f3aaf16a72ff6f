"""The table on the screen: a row for each quantity, a column for each run."""

from collections.abc import Sequence

from fastlatent.commands.comparison.columns import Column

LEAST = 12  # characters of a run's column


def screen_table(columns: Sequence[Column], labels: Sequence[str], width: int) -> list[str]:
    """Lines of at most `width` characters, as far as one run at a time allows.

    Runs that do not fit beside each other follow below. The best of a row is marked, by a star
    where that is clear and by ~ where it is not.
    """
    titles = [_title(column) for column in columns]
    left = max(map(len, [*titles, ""])) + 2
    cells = [_cells(column, len(labels)) for column in columns]
    widths = [
        max(LEAST, len(label) + 2, *(len(row[place]) for row in cells)) + 2
        for place, label in enumerate(labels)
    ]
    lines: list[str] = []
    for block in _blocks(widths, width - left):
        lines += [""] * bool(lines)
        names = "".join(f"{labels[place] + '  ':>{widths[place]}}" for place in block)
        lines.append((" " * left + names).rstrip())
        group = ""
        for column, title, row in zip(columns, titles, cells, strict=True):
            if not any(row[place].strip() for place in block):
                continue
            if column.group != group:
                group = column.group
                lines.append(group)
            line = f"{title:{left}}" + "".join(f"{row[k]:>{widths[k]}}" for k in block)
            lines.append(line.rstrip())
    return lines


def _title(column: Column) -> str:
    return f"  {column.title}" + (f", {column.unit}" if column.unit else "")


def _cells(column: Column, runs: int) -> list[str]:
    marks = {place: " *" if clear else " ~" for place, clear in column.best.items()}
    texts = ["" if cell is None else cell.text for cell in column.cells]
    return [texts[place] + marks.get(place, "  ") for place in range(runs)]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Places in order, as many together as there is room for, at least one."""
    blocks: list[list[int]] = []
    used = room
    for place, width in enumerate(widths):
        if not blocks or used + width > room:
            blocks.append([])
            used = 0
        blocks[-1].append(place)
        used += width
    return blocks
