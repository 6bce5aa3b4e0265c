"""Time series: a pandas frame in, forecasts in the same shape out (extra ``[timeseries]``)."""
