"""The only room that imports rclpy: nodes, messages, parameters."""
