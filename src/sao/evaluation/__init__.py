"""Comparison of models with intervals, and of verdicts with a gold standard where one is known."""
