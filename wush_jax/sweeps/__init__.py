"""Many configurations from one calibration, in one table."""
