"""ONNX graphs that others wrote: finding their weights, quantizing them, and writing the graphs again.

A captured graph (``capture.py``) is known in every detail; of these graphs nothing is known but the operators. So
only what is plainly a weight is touched, and what stays float is said.
"""
