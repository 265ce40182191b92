"""Quantization of weights: pure functions of arrays, which know nothing of models or files."""
