"""Where batches come from: for calibration, training and evaluation."""
