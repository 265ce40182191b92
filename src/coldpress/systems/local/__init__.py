"""This machine, and the process on it that measures."""
