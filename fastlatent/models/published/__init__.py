"""Checkpoints of the authors' programs, read as models of the families here."""
