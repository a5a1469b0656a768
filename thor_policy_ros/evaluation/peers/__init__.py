"""Adapters to other projects' pi0.5, run by the Python of the environment they are installed in."""
