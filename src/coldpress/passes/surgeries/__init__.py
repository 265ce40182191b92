"""Changes of a graph that are known by name: one file = one surgery, done by the pass ``graph_surgeries``."""
