"""Clients of the public API: parity, rollouts, benchmarks, the command line."""
