"""Images drawn with a base: samples, previews, regularisation images."""
