r"""Denoisers whose network predicts more than one quantity."""
