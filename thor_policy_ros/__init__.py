"""pi0.5 on the robot: an accelerated in-process policy behind a ROS 2 node.

Usable without ROS: `UnifiedPolicy`, `BACKENDS`, `verify_backend_engine`. They load on first use,
so that importing the package (or its generated messages) never imports torch.
"""

from importlib import import_module
from pkgutil import extend_path as _extend_path
from typing import TYPE_CHECKING, Any

# Source tree first; the generated `thor_policy_ros.msg` is found wherever colcon installed it.
__path__ = _extend_path(__path__, __name__)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from thor_policy_ros.backends.registry import BACKENDS as BACKENDS
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy as UnifiedPolicy
    from thor_policy_ros.runtime.verification import (
        verify_backend_engine as verify_backend_engine,
    )

_PUBLIC = {
    "UnifiedPolicy": "thor_policy_ros.runtime.unified_policy",
    "BACKENDS": "thor_policy_ros.backends.registry",
    "verify_backend_engine": "thor_policy_ros.runtime.verification",
}

__all__ = ["BACKENDS", "UnifiedPolicy", "__version__", "verify_backend_engine"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
