"""Results as HTML pages and as grids of images."""
