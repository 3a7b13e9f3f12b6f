"""deepbrain 0.1, a 3-D U-Net for brain extraction, out of its frozen TensorFlow graph without TensorFlow.

The graph is a protocol buffer (tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto); the few fields that
hold its constants are declared here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from scipy import ndimage, special
from torch import Tensor, nn
from torch.nn import functional

SIDE = 128
"""Voxels along each axis of the network's input."""

Array = NDArray[Any]

_FLOAT = 1
"""DT_FLOAT of tensorflow/core/framework/types.proto."""


class Upsampling(nn.Module):
    """TensorFlow's transposed convolution of stride 2 with padding "same": the last row of each axis is cut off."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose3d(channels_in, channels_out, 3, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From `[N, Cin, *S]` to `[N, Cout, *2S]`."""
        result: Tensor = self.convolution(x)[..., :-1, :-1, :-1]
        return result


class DeepBrain(nn.Module):
    """Three levels joined by concatenated skips, no normalization; 0.17 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (64, 32), (32, 16), (16, 8))
        layers = [nn.Conv3d(i, o, 3, padding=1) for i, o in widths]
        self.layers = nn.ModuleList([*layers, nn.Conv3d(8, 1, 1)])
        self.upsamplings = nn.ModuleList([Upsampling(32, 32), Upsampling(32, 16), Upsampling(16, 8)])

    def forward(self, image: Tensor) -> Tensor:
        """Logits `f32[N, 1, *S]` of brain for an image `f32[N, 1, *S]`, each of S a multiple of 8."""
        x, skips = image, []
        for level in range(3):
            for layer in self.layers[2 * level : 2 * level + 2]:
                x = functional.relu(layer(x))
            skips.append(x)
            x = functional.max_pool3d(x, 2)
        for upsampling, layer in zip(self.upsamplings, self.layers[6:9], strict=True):
            x = functional.relu(layer(torch.cat([upsampling(x), skips.pop()], 1)))
        logits: Tensor = self.layers[9](x)
        return logits


def load_deepbrain(path: Path) -> DeepBrain:
    """The network with the weights of the frozen graph, in eval mode."""
    stored = frozen_constants(path)

    def weight(name: str) -> Tensor:
        # Kernels lie as [*kernel, Cin, Cout], transposed ones as [*kernel, Cout, Cin]: torch turns both round.
        return torch.from_numpy(stored[f"{name}/kernel"].transpose(4, 3, 0, 1, 2).copy())

    weights = {}
    for index in range(10):
        name = f"conv3d_{index}" if index else "conv3d"
        weights[f"layers.{index}.weight"] = weight(name)
        weights[f"layers.{index}.bias"] = torch.from_numpy(stored[f"{name}/bias"].copy())
    for index in range(3):
        name = f"conv3d_transpose_{index}" if index else "conv3d_transpose"
        weights[f"upsamplings.{index}.convolution.weight"] = weight(name)
    network = DeepBrain()
    network.load_state_dict(weights)
    return network.eval()


def frozen_constants(path: Path) -> Mapping[str, Array]:
    """The f32 constants of a frozen TensorFlow graph by node name."""
    graph = _graph_message()()
    graph.ParseFromString(path.read_bytes())
    found = {}
    for node in graph.node:
        tensor = next((entry.value.tensor for entry in node.attr if entry.key == "value"), None)
        if node.op == "Const" and tensor is not None and tensor.dtype == _FLOAT:
            shape = [axis.size for axis in tensor.shape.dim]
            # One number may stand for all of a tensor, and is then written as a value.
            flat = np.frombuffer(tensor.content, np.float32) if tensor.content else np.float32(tensor.value)
            found[node.name] = np.resize(flat, shape)
    return found


def to_unit_range(cube: Array) -> Array:
    """Intensities as deepbrain was trained on: divided by the largest."""
    return np.asarray(cube / max(float(cube.max()), 1e-6), np.float32)


@dataclass(frozen=True, kw_only=True)
class SmoothHead:
    """A `Preprocess`: the whole field of view as a cube, smoothed before it is resampled as deepbrain does.

    Attributes:
        side: Voxels along each axis of the cube.
    """

    side: int = SIDE

    def __call__(self, volume: Array, affine: Array) -> Array:
        """The network's input `f32[1, side, side, side]`; the voxel size plays no part."""
        return to_unit_range(_resized(volume, (self.side,) * 3))[None]

    def invert(self, outputs: Array, volume: Array, affine: Array) -> Array:
        """Probabilities `f32[1, X, Y, Z]` on the volume's grid, from logits `f32[1, side, side, side]`."""
        return _resized(special.expit(outputs[0]), volume.shape)[None]


def _resized(volume: Array, shape: tuple[int, ...]) -> Array:
    """Linear, after a Gaussian against aliasing: sigma (factor - 1) / 2, as scikit-image's `resize`."""
    factors = np.divide(volume.shape, shape)
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), np.maximum(0, (factors - 1) / 2), mode="mirror")
    zoomed = ndimage.zoom(smooth, 1 / factors, order=1, mode="mirror", grid_mode=True)
    return np.asarray(zoomed, np.float32)


def _graph_message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="frozen.proto", package="frozen", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    integer, number, message = kinds.TYPE_INT64, kinds.TYPE_FLOAT, kinds.TYPE_MESSAGE
    text, octets = kinds.TYPE_STRING, kinds.TYPE_BYTES
    for name, fields in {
        "Dim": [("size", 1, integer, "")],
        "Shape": [("dim", 2, message, "*Dim")],
        "Tensor": [
            ("dtype", 1, integer, ""),
            ("shape", 2, message, "Shape"),
            ("content", 4, octets, ""),
            ("value", 5, number, "*"),
        ],
        "Attribute": [("tensor", 8, message, "Tensor")],
        "Entry": [("key", 1, text, ""), ("value", 2, message, "Attribute")],
        "Node": [("name", 1, text, ""), ("op", 2, text, ""), ("attr", 5, message, "*Entry")],
        "Graph": [("node", 1, message, "*Node")],
    }.items():
        declared = file.message_type.add(name=name)
        for field, place, kind, of in fields:
            label = kinds.LABEL_REPEATED if of.startswith("*") else kinds.LABEL_OPTIONAL
            made = declared.field.add(name=field, number=place, type=kind, label=label)
            if kind == message:
                made.type_name = f".frozen.{of.removeprefix('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("frozen.Graph"))
