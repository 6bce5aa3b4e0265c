"""What the estimator's settings may be: checked before training, not after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from structdiff.arguments import is_number, whole, whole_seed
from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    from structdiff.timeseries.tsdiff import TSDiff


def check_settings(model: TSDiff) -> None:
    """Refuse settings that ``fit`` or a later use would fail with.

    What the frame has a say in (context, lags, frequency) is checked where it is chosen.

    Raises
    ------
    StructDiffError
        Naming the setting.
    """
    for name in ("h", "n_samples", "max_steps", "batch_size", "checkpoint_every"):
        whole(name, getattr(model, name))
    for name, value in (
        ("learning_rate", model.learning_rate),
        ("max_minutes", model.max_minutes),
        ("guidance_scale", model.guidance_scale),
    ):
        if value is None and name != "learning_rate":
            continue
        if value is None or not is_number(value) or not 0 < float(value) < math.inf:
            raise StructDiffError(f"{name} must be a positive number, got {value!r}")
    whole_seed("random_state", model.random_state)
