"""Rewrites of ATen graphs, and what is asked of them."""
