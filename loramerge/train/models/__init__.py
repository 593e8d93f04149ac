"""Bases as they are trained and drawn with: architectures, loading, encoded images and texts."""
