"""Errors that StructDiff raises about what it was given.

Every message names the record or argument, what was wrong with it, and what would be right.
"""

from __future__ import annotations


class StructDiffError(ValueError):
    """Bad input: the message names the record, the reason and the remedy."""


class CheckpointError(StructDiffError):
    """A weights file that is truncated, hostile, of another model, or holds NaN."""
