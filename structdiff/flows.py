r"""Denoisers that are flows."""
