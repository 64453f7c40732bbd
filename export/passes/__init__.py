"""Transformations and analyses of ATen graphs."""
