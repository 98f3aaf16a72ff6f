"""Runs side by side: what each tells about itself, as a table and as a page for the browser."""

from fastlatent.comparison.columns import Column, columns_of, rivals
from fastlatent.comparison.page import page
from fastlatent.comparison.screen import screen_table
from fastlatent.comparison.subject import Subject, subjects

__all__ = ["Column", "Subject", "columns_of", "page", "rivals", "screen_table", "subjects"]
