"""Writes the files that library.py loads: KIND."""

from __future__ import annotations

import sys

import load
import numpy as np


def onnx() -> None:
    """Layers of 1024 x 1024."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.standard_normal((1024, 1024)).astype("f4"), f"w{i}")
        for i in range(16)
    ]
    nodes = []
    for i in range(16):
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Tanh", [f"y{i}"], [f"x{i + 1}"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 1024])]
        for name in ("x0", "x16")
    ]
    graph = helper.make_graph(nodes, "layers", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(load.HERE / "model.onnx"))


def torch() -> None:
    """The same as a state dict."""
    import torch

    torch.manual_seed(1)
    module = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    torch.save(module.state_dict(), load.HERE / "model.pt")


def module() -> None:
    """The weights that the numpy programs load, for layers of 1024 inputs."""
    import torch

    with np.load(load.HERE / "weights.npz") as file:
        state = {name: torch.from_numpy(file[name].reshape(-1, 1024)) for name in file}
    torch.save(state, load.HERE / "module.pt")


if __name__ == "__main__":
    {"onnxruntime": onnx, "torch": torch, "module": module}[sys.argv[1]]()
