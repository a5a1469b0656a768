"""When to infer, and whether to trust the result; the core calls no clock."""
