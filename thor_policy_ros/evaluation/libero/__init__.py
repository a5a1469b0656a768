"""`thor-policy libero`: success of a policy on LIBERO, as openpi's evaluation measures it."""
