"""Builders that tests in several rooms share."""
