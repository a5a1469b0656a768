"""What pi0.5 computes: torch modules and data transforms; no clock, no thread, no ROS."""
