"""The kinds of deltas: one file per kind."""
