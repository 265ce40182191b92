"""Measurements behind the claims: one file for each, peers and coldpress in turns, results as JSON in ``results``."""
