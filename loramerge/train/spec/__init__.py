"""The specification of a run: settings, optimizers, and random numbers derived from the seed."""
