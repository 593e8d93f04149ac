"""One file per verb: parameters (a frozen dataclass) and a function that returns a result object.

Recipes, commands and Python functions are all derived from these; see `parameters` for the fields
that several verbs share.
"""
