"""Parts that several kinds share: scales, factors, dependence on the base, rotations."""
