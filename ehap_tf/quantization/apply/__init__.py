"""A model under emulated quantization: made, calibrated, mended, saved."""
