"""The pipeline: calibrate, fit, solve, rebuild the params, report."""
