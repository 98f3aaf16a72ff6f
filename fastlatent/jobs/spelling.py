"""What a misspelt word may have meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'close'?` for the closest of the known words; nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""
