"""From rows, files and arrays to batches: order, limits, sizes, and what a model's inputs are filled with."""
