"""Faults of the network between the robot's host and the policy's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from thor_policy_ros.ros.fault_rig import POLICY, FaultRig
from thor_policy_ros.ros.fault_scenarios import Act, Scenario
from thor_policy_ros.ros.link_fault_rig import LinkFaultRig

FORGOTTEN_S = 25.0  # above the 20 s after which Fast DDS forgets a peer that it does not hear
REDISCOVERY_S = 60.0
RESTART_S = 180.0  # the model loaded anew, and found by the other host, on a busy machine
FLAP_S = 0.5


def _link(act: Callable[[LinkFaultRig], None]) -> Act:
    def on_two_hosts(rig: FaultRig) -> None:
        assert isinstance(rig, LinkFaultRig), "a scenario of two hosts on the bench of one"
        act(rig)

    return on_two_hosts


CUT = _link(lambda rig: rig.hosts.cut())
MEND = _link(lambda rig: rig.hosts.mend())


def _impair(loss: float = 0.0, delay_s: float = 0.0) -> Act:
    return _link(lambda rig: rig.hosts.impair(loss, delay_s))


def _flap(rig: LinkFaultRig) -> None:
    (rig.hosts.cut if int(time.monotonic() / FLAP_S) % 2 else rig.hosts.mend)()


LINKS = tuple(
    replace(row, two_hosts=True)
    for row in (
        Scenario("link_cut_2_s", "link", CUT, MEND),
        Scenario("link_cut_25_s", "link", CUT, MEND, lasts_s=FORGOTTEN_S,
                 recovers_s=REDISCOVERY_S),
        Scenario("link_comes_and_goes", "link", CUT, MEND, during=_link(_flap), lasts_s=5.0),
        Scenario("link_loses_5_percent", "link", _impair(loss=0.05), MEND, lasts_s=5.0),
        Scenario("link_loses_30_percent", "link", _impair(loss=0.3), MEND, lasts_s=5.0),
        Scenario("link_delays_50_ms", "link", _impair(delay_s=0.05), MEND, lasts_s=5.0),
        Scenario("link_delays_50_ms_and_loses_5_percent", "link", _impair(0.05, 0.05), MEND,
                 lasts_s=5.0),
        Scenario("link_delays_300_ms", "link", _impair(delay_s=0.3), MEND, lasts_s=5.0),
        Scenario("policy_host_gone", "link", _link(LinkFaultRig.lose_policy_host),
                 _link(LinkFaultRig.bring_policy_host_back), lasts_s=4.0,
                 recovers_s=RESTART_S),
        Scenario("policy_killed_on_its_host", "link", _link(lambda rig: rig.kill(POLICY)),
                 recovers_s=RESTART_S),
    )
)  # fmt: skip
