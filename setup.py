"""`pip install .` for use as a library without ROS 2; nodes and messages come from colcon."""

from setuptools import setup

setup()
