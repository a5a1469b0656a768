"""Making `.venv`: run by make, with nothing but Python's standard library."""
