"""Search engines: one module for each."""
