"""What was never measured, predicted from what was: tables, additive models, boosting, with their errors."""
