"""`neaptide cost`: the database of measured operators and networks, and predictors fitted to it."""
