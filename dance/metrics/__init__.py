"""How good generated images are, by one small seeded network for each data set."""

from dance.metrics.evaluator import NOT_MEASURED, Evaluation, Evaluator

__all__ = ["NOT_MEASURED", "Evaluation", "Evaluator"]
