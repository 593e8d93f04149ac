"""Pages, plots and their figures."""
