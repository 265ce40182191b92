"""From a model and a target to graphs with named, empty weights, and where in the checkpoint each of them comes from.

``exporters`` chooses who does it: ``mobius`` or ``torch_export``.
"""
