"""Scores of single replies: metrics by name, and the rules of released benchmarks. Pure functions, no torch."""

from components.metrics.scorers import SCORERS, check_answers, score

__all__ = ["SCORERS", "check_answers", "score"]
