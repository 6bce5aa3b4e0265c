"""Time series: forecasting, imputation, refinement and synthesis with TSDiff."""

from structdiff.timeseries.evaluation import evaluate
from structdiff.timeseries.frames import Panel, read_panel
from structdiff.timeseries.refining import Refinement
from structdiff.timeseries.tsdiff import TSDiff

__all__ = ["Panel", "Refinement", "TSDiff", "evaluate", "read_panel"]
