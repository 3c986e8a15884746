"""The store that a program's workers share when nobody has named one."""

from __future__ import annotations

import os
from typing import Any

from ksmpy.store.store import Store
from ksmpy.whole.common import common_store
from ksmpy.whole.enable import enable

__all__ = ["chosen_store", "enable_on"]


def chosen_store() -> Store | None:
    """A new one without a name, for the children of this process; None where KSMPY_STORE or ksmpy
    run has chosen another, as enable() finds it.
    """
    return None if _is_chosen() else Store.anonymous()


def enable_on(name: str, options: dict[str, Any]) -> None:
    """enable() in a worker that has nothing of its parent's: on the store of this name, unless the
    options, KSMPY_STORE or ksmpy run have chosen another.
    """
    if options.get("store") is None and not _is_chosen():
        options = {**options, "store": name}
    enable(**options)


def _is_chosen() -> bool:
    if os.environ.get("KSMPY_STORE"):
        return True
    found = common_store()
    if found is not None:
        found.close()
    return found is not None
