"""What systems share that do their jobs in processes: on this machine, in another environment, in a container."""
