"""What metrics share: a model of any kind opened to be fed, several of them in turns, and which differences are noise."""
