"""The steps of a run: batches, the loop, its log and its state."""
