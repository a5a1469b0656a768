"""The recipe of the demo checkpoint: expert data, flow matching, export."""
