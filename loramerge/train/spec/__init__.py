"""What a run is asked for: settings, optimizers, and the random numbers that follow from the seed."""
