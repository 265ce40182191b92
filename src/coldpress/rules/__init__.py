"""What is known of graphs that are slow or larger than they need be: one file = one rule.

`lint` prints them, passes refuse by them.
"""
