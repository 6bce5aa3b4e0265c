"""Graphs: networks, published checkpoints, and graph sets as states."""
