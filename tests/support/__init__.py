"""Shared code for tests; pytest does not collect it."""
