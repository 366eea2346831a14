"""Feature extractors and distances: what a score is made of."""
