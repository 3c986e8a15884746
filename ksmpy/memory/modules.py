"""A torch module's parameters on page-aligned memory, where equal ones share their pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from ksmpy.memory.arrays import empty

__all__ = ["align_module"]

_Module = TypeVar("_Module")


def align_module(module: _Module, *, min_bytes: int = 1 << 16) -> _Module:
    """Move a torch module's parameters and buffers, in place, to memory that begins at a page.

    Storages of at least `min_bytes` bytes, on the CPU and not shared with other processes; what
    shares a storage goes on to share it. Parameters stay the same objects, so optimizers keep them;
    each storage is copied once, and takes twice its memory meanwhile. Returns the module.
    ImportError without torch, TypeError for what is no torch.nn.Module.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module is expected, not {type(module).__name__}")
    moved: dict[int, Any] = {}
    with torch.no_grad():
        for tensor in _tensors(module):
            old = tensor.untyped_storage()
            if old.nbytes() < max(min_bytes, 1) or old.is_shared():
                continue
            key = old.data_ptr()
            if key not in moved:
                # The old storage is kept until the end, so that no new one can get its address.
                moved[key] = _copied(old), old
            new = torch.empty(0, dtype=tensor.dtype)
            new.set_(moved[key][0], tensor.storage_offset(), tensor.shape, tensor.stride())
            tensor.data = new
    return module


def _tensors(module: Any) -> Iterator[Any]:
    """The strided ones of the CPU, each once."""
    import torch

    seen: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.layout == torch.strided:
            seen.setdefault(id(tensor), tensor)
    yield from seen.values()


def _copied(storage: Any) -> Any:
    """The same bytes on memory that begins at a page."""
    import torch

    new = torch.from_numpy(empty(storage.nbytes(), "u1")).untyped_storage()
    new.copy_(storage)
    return new
