"""Runs side by side: what each tells about itself, as a table and as a page for the browser."""

from fastlatent.commands.comparison.choice import SEEDS, chosen, first_columns, seeds_of
from fastlatent.commands.comparison.columns import Column, columns_of, rivals
from fastlatent.commands.comparison.page import page
from fastlatent.commands.comparison.screen import screen_table
from fastlatent.commands.comparison.subject import Subject, subjects

__all__ = [
    "SEEDS",
    "Column",
    "Subject",
    "chosen",
    "columns_of",
    "first_columns",
    "page",
    "rivals",
    "screen_table",
    "seeds_of",
    "subjects",
]
