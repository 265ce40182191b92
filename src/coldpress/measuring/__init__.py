"""What metrics share: a model of any kind opened to be fed, also for lm-evaluation-harness; losses; which differences
are noise."""
