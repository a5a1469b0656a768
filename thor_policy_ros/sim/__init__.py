"""Simulated robots and their cameras; imports `types` alone."""
