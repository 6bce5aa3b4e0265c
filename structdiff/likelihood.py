r"""Log-likelihood by the probability flow."""
