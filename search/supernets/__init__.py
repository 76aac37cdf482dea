"""Networks that hold every architecture of a space at once, with shared weights."""
