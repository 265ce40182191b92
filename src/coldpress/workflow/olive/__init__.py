"""Olive's configurations, of today's schema and older ones, as workflows.

What they say is translated by tables (``passes.yaml``, ``keys.yaml``); what has no effect here becomes a note, and what
cannot be expressed a problem. Nothing is passed over. What a configuration leaves out has coldpress's default, not
Olive's.
"""
