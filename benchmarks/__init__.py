"""Timing suites (pytest --benchmark-only), and what they share."""
