"""What there is to train, in lines of text: presets, and models of installed packages."""

import textwrap

from fastlatent.files.code import registered
from fastlatent.presets import DEFAULT_PRESET, PRESETS

_INDENT = " " * 6


def preset_lines() -> list[str]:
    """All presets with what is known of them, those with measured results first."""
    lines: list[str] = []
    for title, measured in (("Measured:", True), ("Not measured yet:", False)):
        lines += ["", title] if lines else [title]
        for name, preset in PRESETS.items():
            if bool(preset.result) == measured:
                lines.append(f"  {name}{' (default)' if name == DEFAULT_PRESET else ''}")
                text = f"{preset.description} {preset.result}".rstrip()
                if len(preset.styles) > 1:
                    text += f" Styles: {', '.join(preset.styles)}."
                lines += textwrap.wrap(text, 92, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return lines


def registered_lines() -> list[str]:
    """What --help says of models that installed packages register."""
    points = registered(("fastlatent.models",))
    if not points:
        return []
    width = max(map(len, points))
    lines = (f"  {name:{width}}  {point.value}" for name, point in points.items())
    return ["Installed packages have models of their own, to be trained by name like a PRESET:",
            *lines, ""]  # fmt: skip
