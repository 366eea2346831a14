"""Converts models from and to other libraries."""
