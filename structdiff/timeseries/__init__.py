"""Time series: a pandas frame in, probabilistic forecasts in the same shape out (needs ``[timeseries]``)."""
