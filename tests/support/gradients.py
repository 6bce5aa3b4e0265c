"""Slopes by differences, against which gradients are tested."""

import torch


def finite_difference(energy, x, h=1e-6):
    slope = torch.zeros_like(x)
    for index in torch.ones_like(x).nonzero().tolist():
        step = torch.zeros_like(x)
        step[tuple(index)] = h
        change = energy(x + step) - energy(x - step)
        slope[tuple(index)] = change[index[0]] / (2 * h)
    return slope
