"""Capture by mobius: the graph of an architecture, fused for the provider; and what mobius 0.1 gets wrong."""
