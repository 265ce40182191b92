"""One unit of work as plain data, and where its results are kept."""
