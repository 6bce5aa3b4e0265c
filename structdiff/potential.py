r"""Denoisers whose score is the gradient of a potential."""
