"""The parameters of motion under latency: how chunks join, added latency, control timing."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import NodeParameters, ParameterRow
from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.latency_injection import DISTRIBUTIONS, LONGEST_MS, InjectedLatency
from thor_policy_ros.runtime.real_time_chunking import MODES, SCHEDULES, ChunkingRules

_RULES = ChunkingRules()

POLICY_MOTION = (
    ParameterRow(
        "chunk_blending",
        "string",
        "crossfade",
        "How a chunk joins the one before: latest switches at once, crossfade fades over, "
        "temporal_ensemble averages the chunks that cover the present, rtc infers the chunk so "
        "that it continues what will have been executed (real-time chunking), then fades over",
        choices=BLENDINGS,
        live=True,
    ),
    ParameterRow(
        "rtc_execution_horizon",
        "int",
        _RULES.execution_horizon,
        "Rows of a chunk, from its observation's time, up to which rtc pulls it towards the one "
        "before, with a weight that falls; rows that will have been executed count fully anyway",
        bounds=(0, 1000),
        live=True,
    ),
    ParameterRow(
        "rtc_max_guidance_weight",
        "double",
        _RULES.max_weight,
        "Bound of rtc's pull on the flow; 0: none",
        bounds=(0.0, 100.0),
        live=True,
    ),
    ParameterRow(
        "rtc_prefix_attention_schedule",
        "string",
        _RULES.schedule,
        "How rtc's weight falls towards rtc_execution_horizon; zeros: at once",
        choices=SCHEDULES,
        live=True,
    ),
    ParameterRow(
        "rtc_mode",
        "string",
        _RULES.mode,
        "How rtc continues: guided pulls the flow of any checkpoint; trained gives the rows as "
        "they are to one that was trained to continue them (trained_prefix_rows in its config)",
        choices=MODES,
        live=True,
    ),
)

EXECUTOR_MOTION = (
    ParameterRow(
        "chunk_blending",
        "string",
        "",
        "How a chunk joins the one before; empty: as the chunk says, which is the policy's "
        "chunk_blending",
        choices=("", *BLENDINGS),
        live=True,
    ),
    ParameterRow(
        "ensemble_decay",
        "double",
        0.5,
        "In a temporal_ensemble a chunk counts e^-decay for each row that it is older than the "
        "newest",
        bounds=(0.0, 10.0),
        live=True,
    ),
    ParameterRow(
        "realtime_priority",
        "int",
        0,
        "Priority of the control thread under SCHED_FIFO; 0: the ordinary scheduler",
        bounds=(0, 99),
    ),
    ParameterRow(
        "lock_memory",
        "bool",
        False,
        "Keep the process in memory (mlockall), so that no tick waits for a page",
    ),
)

INJECTION = (
    ParameterRow(
        "inject_latency_ms",
        "double",
        0.0,
        "TEST ONLY: latency added on purpose; diagnostics warn while it is above 0. In policy_node "
        "every frame takes so much longer; in sim_robot_node images and joint states leave so "
        "much later than their stamps say",
        "ms",
        bounds=(0.0, LONGEST_MS),
        live=True,
    ),
    ParameterRow(
        "inject_latency_distribution",
        "string",
        "constant",
        "TEST ONLY: how inject_latency_ms, its mean, is distributed",
        choices=DISTRIBUTIONS,
        live=True,
    ),
    ParameterRow(
        "inject_latency_spike_ms",
        "double",
        0.0,
        "TEST ONLY: added on top now and then",
        "ms",
        bounds=(0.0, LONGEST_MS),
        live=True,
    ),
    ParameterRow(
        "inject_latency_spike_ratio",
        "double",
        0.0,
        "TEST ONLY: share of the frames, or images, with a spike",
        bounds=(0.0, 1.0),
        live=True,
    ),
)


def chunking_rules(parameters: NodeParameters) -> ChunkingRules:
    """rtc as the parameters want it."""
    return ChunkingRules(
        enabled=parameters["chunk_blending"] == "rtc",
        execution_horizon=parameters["rtc_execution_horizon"],
        max_weight=parameters["rtc_max_guidance_weight"],
        schedule=parameters["rtc_prefix_attention_schedule"],
        mode=parameters["rtc_mode"],
    )


def injected_latency(parameters: NodeParameters) -> InjectedLatency:
    """The latency to add, in tests."""
    return InjectedLatency(
        parameters["inject_latency_ms"],
        parameters["inject_latency_distribution"],
        parameters["inject_latency_spike_ms"],
        parameters["inject_latency_spike_ratio"],
    )
