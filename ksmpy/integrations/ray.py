"""Ray: ``ray.init(runtime_env={"worker_process_setup_hook": "ksmpy.integrations.ray.setup"})``.

Options come from KSMPY_*, as for enable(); ``env_vars`` of the runtime environment sets them.
"""

from __future__ import annotations

from ksmpy.integrations.common import enable_on

__all__ = ["setup"]


def setup() -> None:
    """In each worker process, when it starts: it merges with the others on its machine, on the
    store "ray" unless KSMPY_STORE names another.
    """
    enable_on("ray", {})
