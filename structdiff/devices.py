"""Where a trained model samples."""

from __future__ import annotations

import torch

from structdiff.errors import StructDiffError


def sampling_device(accelerator: str) -> torch.device:
    """The device of an accelerator: ``"auto"`` is the GPU if there is one, else the CPU.

    Parameters
    ----------
    accelerator
        Lightning's name: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``.

    Raises
    ------
    StructDiffError
        If a GPU is asked for and there is none, or the name is another.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise StructDiffError(
            f"cannot sample on accelerator {accelerator!r}: choose auto, cpu, gpu or cuda"
        )
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StructDiffError("there is no GPU here: set accelerator='auto' or 'cpu'")
    return torch.device("cuda")
