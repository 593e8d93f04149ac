"""Recipes: YAML to a validated graph, its plan, and its run."""
