"""Run by make. Setup uses nothing but Python's standard library."""
