"""The simulated arm as a URDF."""

ARM_URDF = """<?xml version="1.0"?>
<robot name="arm">
  <link name="base"/><link name="tower"/><link name="upper"/><link name="fore"/>
  <link name="hand"/><link name="tip"/>
  <joint name="base_yaw" type="revolute">
    <parent link="base"/><child link="tower"/><origin xyz="0 0 0.26"/><axis xyz="0 0 1"/>
    <limit lower="-1.3" upper="1.3" velocity="2.0" effort="1"/>
  </joint>
  <joint name="shoulder" type="revolute">
    <parent link="tower"/><child link="upper"/><axis xyz="0 2 0"/>
    <limit lower="-0.75" upper="1.4" velocity="2.0" effort="1"/>
  </joint>
  <joint name="elbow" type="revolute">
    <parent link="upper"/><child link="fore"/><origin xyz="0 0 0.36"/><axis xyz="0 1 0"/>
    <limit lower="0.4" upper="2.75" velocity="2.0" effort="1"/>
  </joint>
  <joint name="wrist" type="revolute">
    <parent link="fore"/><child link="hand"/><origin xyz="0 0 0.38"/><axis xyz="0 1 0"/>
    <limit lower="-0.5" upper="2.2" velocity="2.0" effort="1"/>
  </joint>
  <joint name="flange" type="fixed">
    <parent link="hand"/><child link="tip"/><origin xyz="0 0 0.14"/>
  </joint>
</robot>
"""
ARM_JOINTS = ("base_yaw", "shoulder", "elbow", "wrist")
