"""Parts that verbs share: parameters, opening inputs, naming and writing outputs, provenance."""
