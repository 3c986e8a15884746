"""torch's storages give memory back, change it and share it: no byte of anybody's is lost.

Skipped without torch, which `make test-torch` installs.
"""

from __future__ import annotations

import copy
import gc
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from conftest import EACH_FREEZE
from support import oracle
from support.background import scanning
from support.patience import patience, until

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch")

MIB = 1 << 20
TENSORS = 4
#: Sizes of what malloc may make of a block that was given back, and what it is filled with.
SIZES = range(1000, 200_000, 1000)
FILL = 0xAA


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Torch starts no threads of its own, and malloc keeps blocks of some MiB in its heap."""
    torch.set_num_threads(1)
    block = np.empty(31 * MIB, np.uint8)
    del block


def tensors() -> list[Any]:
    """Equal ones of 1 MiB, wherever malloc puts them within a page: 64 bytes repeat."""
    block = torch.arange(16.0)
    return [block.repeat(MIB // 64) for _ in range(TENSORS)]


def resized(each: Any) -> None:
    """Larger: other memory."""
    each.resize_(2 * each.numel())


def emptied(each: Any) -> None:
    """As FSDP does it."""
    each.untyped_storage().resize_(0)


def replaced(each: Any) -> None:
    """The tensor gets another storage, its own dies."""
    each.set_(torch.zeros(10))


def shared(each: Any) -> None:
    """What a queue of torch.multiprocessing does to a tensor."""
    each.share_memory_()


def dropped(each: Any) -> None:
    """Its storage dies with it, when the caller lets go."""


CHANGES = [resized, emptied, replaced, shared, dropped]


def kept(each: Any, wanted: Any) -> bool:
    """Whether a tensor that still has as much memory has its bytes."""
    has_less = each.untyped_storage().nbytes() < wanted.nbytes
    return has_less or torch.equal(each[: wanted.numel()], wanted)


def in_other_thread(change: Callable[[Any], None], each: Any) -> None:
    """Do it where nobody of ours is."""
    thread = threading.Thread(target=change, args=(each,))
    thread.start()
    thread.join()


def refill() -> list[bytearray]:
    """Blocks that malloc makes of what was given back."""
    return [bytearray([FILL]) * size for size in SIZES]


def check(blocks: list[bytearray]) -> None:
    """Nobody has written to them."""
    assert all(block.count(FILL) == len(block) for block in blocks)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("where", ["here", "thread"])
@pytest.mark.parametrize("mode", EACH_FREEZE, ids=str, indirect=True)
def test_registered_storages(engine: Any, change: Any, where: str) -> None:
    """Memory that a registered storage has given back belongs to whoever got it since."""
    for _ in range(2):
        mine = tensors()
        wanted = mine[0].clone()
        assert len(engine.track(mine)) == TENSORS
        engine.scan(eager=True)
        assert engine.stats().pages_sharing > 200
        for each in mine:
            if where == "here":
                change(each)
            else:
                in_other_thread(change, each)
        if change is dropped:
            mine.clear()
            del each
        blocks = refill()
        engine.scan(eager=True)
        assert engine.regions() == ()
        assert all(kept(each, wanted) for each in mine)
        del mine
        gc.collect()
        check(blocks)
    engine._core.check()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("way", ["mappings", "objects"])
def test_adopted_storages(enabled: Any, change: Any, way: str) -> None:
    """The same for storages that were found, while the scanner is at work."""
    mine = tensors()
    wanted = mine[0].clone()
    engine = enabled(adopt=way)
    until(lambda: engine.stats().pages_sharing > 200, ksmpy.coverage, limit=patience(30))
    for each in mine:
        change(each)
    if change is dropped:
        mine.clear()
        del each
    blocks = refill()
    for _ in range(3):
        engine.scan(eager=True)
        check(blocks)
    assert all(kept(each, wanted) for each in mine)
    del mine
    gc.collect()
    ksmpy.disable()
    check(blocks)


def test_array_of_a_tensor(engine: Any) -> None:
    """tensor.numpy() is memory of the tensor's storage, whoever gets that later."""
    mine = tensors()
    views = [each.numpy() for each in mine]
    regions = [engine.register(view) for view in views]
    engine.scan(eager=True)
    assert engine.stats().pages_sharing > 200
    del views
    for each in mine:
        replaced(each)
    blocks = refill()
    assert engine.regions() == ()
    assert all(region._released for region in regions)
    check(blocks)


def test_model_in_a_state_dict_is_found(enabled: Any) -> None:
    """Weights of two equal models are found by either way, merged, and trained."""
    torch.manual_seed(1)
    models = [torch.nn.Linear(1024, 1024) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        for model in models:
            model.weight.copy_(torch.arange(16.0).repeat(1024, 64))
    engine = enabled(adopt="objects")
    until(lambda: engine.stats().pages_sharing > 200, ksmpy.coverage, limit=patience(30))
    before = models[1].weight.clone()
    with torch.no_grad():
        models[0].weight += 1
    assert torch.equal(models[1].weight, before)
    assert torch.equal(models[0].weight, before + 1)
    assert oracle.store_mappings()


def test_a_modules_parameters_move_to_pages() -> None:
    """Values, ties, views and the objects stay; small ones and those of no module are left."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 301), torch.nn.Linear(301, 300))
    tied = torch.nn.Linear(301, 300, bias=False)
    tied.weight = model[1].weight
    model.append(tied)
    model.register_buffer("part", model[0].weight.data[10:20])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = model[0].bias.data_ptr()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert ksmpy.align_module(model) is model
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for weight in (model[0].weight, model[1].weight):
        assert weight.untyped_storage().data_ptr() % 4096 == 0 and weight.requires_grad
    assert model[0].bias.data_ptr() == small
    assert model[2].weight is model[1].weight
    model.part.fill_(7)
    assert torch.all(model[0].weight[10:20] == 7)
    model[0](torch.ones(1, 300)).sum().backward()
    optimizer.step()
    assert not torch.all(model[0].weight[10:20] == 7)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        ksmpy.align_module([model])


def test_aligned_models_share_all_their_pages() -> None:
    """Two of the same weights, whatever lies between them."""
    torch.manual_seed(0)
    one = torch.nn.Linear(1024, 1023, bias=False)
    two = torch.nn.Linear(1024, 1023, bias=False)
    two.load_state_dict(one.state_dict())
    with ksmpy.Engine() as engine:
        engine.track([ksmpy.align_module(one), ksmpy.align_module(two)])
        engine.scan(eager=True)
        assert engine.stats().pages_sharing == 1023


def merge(engine: Any, *objects: Any) -> None:
    """Wait until the thread above has merged pages of each region of these."""
    regions = engine.track(objects)
    until(lambda: all(each.stats().merging_pages for each in regions), "no", limit=patience(30))


@pytest.mark.parametrize("mode", EACH_FREEZE, ids=str, indirect=True)
def test_storages_that_change_under_a_scanner(engine: Any) -> None:
    """Whatever becomes of some, in this thread and in others: the rest, and who got their memory,
    have their bytes.
    """
    kept = tensors()
    wanted = kept[0].clone()
    with scanning(engine):
        merge(engine, kept)
        for turn in range(len(CHANGES)):
            mine = tensors()
            merge(engine, mine)
            threads = []
            while mine:
                each = mine.pop()
                change = CHANGES[(turn + len(mine)) % len(CHANGES)]
                if len(mine) % 2:
                    change(each)
                else:
                    threads.append(threading.Thread(target=change, args=(each,)))
                del each
            for thread in threads:
                thread.start()
            blocks = refill()
            for thread in threads:
                thread.join()
            del threads, thread
            check(blocks)
            assert all(torch.equal(each, wanted) for each in kept)
    engine._core.check()
    assert len(engine.regions()) == len(kept)


def module() -> Any:
    """Three equal ones are equal, and begin on pages."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512)]
    return ksmpy.align_module(torch.nn.Sequential(*layers))


def trained(model: Any) -> dict[str, Any]:
    """Its weights after some steps with Adam, which keeps two tensors for each parameter."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(20):
        inputs = torch.randn(16, 512)
        optimizer.zero_grad()
        (model(inputs) - inputs.flip(1)).square().mean().backward()
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("mode", EACH_FREEZE, ids=str, indirect=True)
def test_training_goes_as_it_would(engine: Any) -> None:
    """Bit by bit, with merged weights; copies and equal models do not change with them."""
    wanted, untrained = trained(module()), module().state_dict()
    models = [module() for _ in range(3)]
    with scanning(engine):
        merge(engine, models)
        models.append(copy.deepcopy(models[0]))
        engine.track(models[-1])
        for model in models[:2]:
            found = trained(model)
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
        for model in models[2:]:
            found = model.state_dict()
            assert all(torch.equal(found[name], value) for name, value in untrained.items())


def test_weights_that_are_mapped_from_a_file(auto: Any, tmp_path: Path) -> None:
    """torch.load(mmap=True) maps the file, whose memory processes share anyhow: nothing is
    adopted nor promised there; and what was merged is saved as it is.
    """
    path = tmp_path / "weights.pt"
    models = [module() for _ in range(2)]
    wanted = {name: value.clone() for name, value in models[0].state_dict().items()}
    with scanning(auto):
        merge(auto, models)
        torch.save(models[0].state_dict(), path)
        mapped = [torch.load(path, mmap=True) for _ in range(2)]
        for model, state in zip(models, mapped, strict=True):
            model.load_state_dict(state, assign=True)
        assert auto.track(mapped) == []
        assert ksmpy.estimate(*mapped).duplicate_pages == 0
        with torch.no_grad():
            models[0][0].weight += 1
        assert torch.equal(models[0][0].weight, wanted["0.weight"] + 1)
        assert torch.equal(models[1][0].weight, wanted["0.weight"])
        again = io.BytesIO()
        torch.save(models[1].state_dict(), again)
        thread = threading.Thread(target=mapped.clear)
        del model, state, models
        thread.start()
        thread.join()
        again.seek(0)
        for state in (torch.load(path), torch.load(again)):
            assert all(torch.equal(state[name], value) for name, value in wanted.items())
    assert auto.regions() == ()
