"""What calibration keeps of a layer's input."""
