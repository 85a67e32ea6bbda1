"""The second and fourth step: rows to canonical pairs, human and synthetic pairs to one set."""
