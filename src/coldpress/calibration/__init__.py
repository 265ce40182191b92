"""Quantizing a network for its inputs, layer by layer: Gram matrices, folds, rotations, sensitivities, budgets."""
