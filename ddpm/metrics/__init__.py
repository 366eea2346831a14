"""Scores of generated images: feature extractors and distances."""
