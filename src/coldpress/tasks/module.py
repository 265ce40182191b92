"""PyTorch modules of one's own: nobody knows what they are for, so all their outputs are compared."""

from __future__ import annotations

from coldpress.measuring.agreement import by_precision
from coldpress.parts.task import Criterion, Task


class Module(Task):
    """Compared with the module in eager PyTorch, on its example inputs and on other sizes of its open axes."""

    title = "PyTorch modules"
    metric = "module_divergence"
    metrics = ("latency",)
    needs = ("torch",)
    criteria = (
        Criterion(
            "relative",
            "Change of the outputs",
            "norm of the difference in units of the module's norm, of the output that is furthest off",
            "lower",
            "distance of the outputs from the module's",
            by_precision(1e-4, 0.02, 0.1, 0.4, 0.6),
            why="float32 differs in the order of sums; 8 bits round each layer by 1% to 2%, which adds up",
        ),
        Criterion(
            "cosine",
            "Same direction",
            "cosine of all numbers of an output with the module's, of the output that is furthest off",
            "higher",
            "cosine of the outputs with the module's",
            by_precision(0.99999, 0.999, 0.99, 0.92, 0.8),
            why="what points elsewhere is another answer, however small it is",
        ),
    )
