"""What was never measured, predicted from what was.

`fit` learns networks described by columns (a CSV of measured networks), `fit_operators` single operators from the cost database, whose
sum is a network. Several models are tried, the best by cross-validation is kept, and it carries the error it had there.
"""

from .columns import Columns, read_csv
from .fit import Accuracy, Predictor, fit
from .operators import OperatorPredictor, fit_operators, table_of
from .storage import load_predictor, save_predictor

__all__ = [
    "Accuracy",
    "Columns",
    "OperatorPredictor",
    "Predictor",
    "fit",
    "fit_operators",
    "load_predictor",
    "read_csv",
    "save_predictor",
    "table_of",
]
