"""Quantized Hugging Face checkpoints: compressed-tensors, GPTQ and AWQ, written and read without loss.

Each format has ``tensors_of`` and ``config_of`` to write with, module by module, and ``linears_in`` to read with.
"""
