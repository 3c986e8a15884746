"""The store that a program's workers share when nobody has named one."""

from __future__ import annotations

import os

from ksmpy.store.store import Store
from ksmpy.whole.common import common_store

__all__ = ["chosen_store"]


def chosen_store() -> Store | None:
    """A new one without a name, for the children of this process; None where KSMPY_STORE or ksmpy
    run has chosen another, as enable() finds it.
    """
    if os.environ.get("KSMPY_STORE") or common_store() is not None:
        return None
    return Store.anonymous()
