"""Experiments, one per file; `default.py` has all settings."""
