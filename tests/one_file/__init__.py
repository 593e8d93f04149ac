"""Adding a thing is one file: made-up ones from outside the package work wherever they should."""
