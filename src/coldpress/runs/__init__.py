"""Doing what was asked: from a workflow to an output folder, verified and reported."""
