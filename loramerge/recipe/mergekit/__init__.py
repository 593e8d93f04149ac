"""Recipes of mergekit: read its YAML, and write the steps that do the same here.

Source: mergekit 0.1.5, `config.py`, `plan.py`, `merge_methods` and `sparsify.py`;
`tests/peers/test_mergekit.py` compares both programs.
"""

from loramerge.recipe.mergekit.translation import recipe_of_mergekit

__all__ = ["recipe_of_mergekit"]
