"""How the policy is executed: one module an engine, one table of names."""
