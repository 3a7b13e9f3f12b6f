"""Small networks that many tests share."""

from __future__ import annotations

import functools
import gc
import importlib.util
import locale
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from fptq.engines import ENGINES
from fptq.graph.model import Model


def pytest_collection_finish() -> None:
    """Keep what imports have made out of the garbage collector's way: every full pass walks millions of objects."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    names = [mark.args[0] for mark in item.iter_markers("engine")]
    for name in names:
        there = ENGINES[name].version() is not None if name in ENGINES else importlib.util.find_spec(name) is not None
        if not there:
            pytest.skip(f"the engine {name} is not installed")
    if ("tensorrt" in names or any(item.iter_markers("gpu"))) and not has_gpu():
        pytest.skip("torch finds no CUDA GPU")


@functools.cache
def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


class Net:
    """Builds a chain of ONNX nodes, `net("Conv", weight=(8, 3, 3, 3))` at a time."""

    def __init__(self, shape: tuple[int, ...], *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.input = ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)
        self.last: ir.Value = self.input
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def stored(self, *shape: int, scale: float = 0.2) -> ir.Value:
        name = f"w{len(self.initializers)}"
        array = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.initializers.append(value)
        return value

    def shape(self, *sizes: int) -> ir.Value:
        """A stored `i64[rank]`, as Reshape reads it."""
        name = f"w{len(self.initializers)}"
        value = ir.val(name, const_value=ir.tensor(np.array(sizes, dtype=np.int64), name=name))
        self.initializers.append(value)
        return value

    def __call__(self, op: str, *more: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op, [self.last, *more], attributes, name=f"{op}_{len(self.nodes)}")  # type: ignore[arg-type]
        self.last = node.outputs[0]
        self.last.name, self.last.dtype = f"v{len(self.nodes)}", ir.DataType.FLOAT
        self.nodes.append(node)
        return self.last

    def conv(self, c_in: int, c_out: int, *, rank: int = 2, kernel: int = 3) -> ir.Value:
        weight, bias = self.stored(c_out, c_in, *[kernel] * rank), self.stored(c_out)
        size = [kernel] * rank
        return self("Conv", weight, bias, kernel_shape=size, pads=[kernel // 2] * 2 * rank)

    def scores(self) -> ir.Value:
        """`x x^T`, as attention makes it of a value of four axes; returns `x`, the last value before."""
        x = self.last
        turned = self("Transpose", perm=[0, 1, 3, 2])
        self.last = x
        self("MatMul", turned)
        return x

    def model(self) -> Model:
        graph = ir.Graph(
            [self.input],
            [self.last],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 21},
            name="net",
        )
        made = ir.Model(graph, ir_version=10)
        inferred = ShapeInferencePass()(made).model
        return Model(graph_model=inferred)


@pytest.fixture
def net() -> Callable[..., Net]:
    return Net


@pytest.fixture
def cnn() -> Model:
    """Conv, Relu, max pooling, a skip joined by Concat, a transposed convolution, normalisation, a 1x1 head."""
    n = Net((1, 4, 16, 16))
    n.conv(4, 16)
    skip = n("Relu")
    n("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    n.conv(16, 32)
    n("Relu")
    n("ConvTranspose", n.stored(32, 16, 2, 2), strides=[2, 2], kernel_shape=[2, 2])
    n("Concat", skip, axis=1)
    n.conv(32, 16)
    n("InstanceNormalization", n.stored(16, scale=1.0), n.stored(16))
    n("Relu")
    n.conv(16, 4, kernel=1)
    return n.model()


@pytest.fixture
def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 4, 16, 16)).astype(np.float32)} for _ in range(6)]


@pytest.fixture
def series():
    """A function that writes a volume `i16[X, Y, Z]` as axial slices, the grid of scanners: left, back, head."""
    sitk, spacing = pytest.importorskip("SimpleITK"), (0.7, 0.9, 2.5)

    def write(folder, volume, uid="1.2.3.4", names="{}.dcm", tilted=False):
        folder.mkdir(parents=True, exist_ok=True)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for z in range(volume.shape[2]):
            image = sitk.GetImageFromArray(np.ascontiguousarray(volume[:, :, z].T)[None])
            image.SetSpacing(spacing)
            tags = {
                "0008|0060": "CT",
                "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
                "0008|0018": f"{uid}.{z + 1}",
                "0020|000d": "1.2.3",
                "0020|000e": uid,
                "0020|0013": str(z),
                "0020|0037": "0\\1\\0\\1\\0\\0" if tilted else "1\\0\\0\\0\\1\\0",
                "0020|0032": f"-10\\-20\\{(-1 if tilted else 1) * spacing[2] * z}",
                "0028|1052": "-1024",
                "0028|1053": "1",
            }
            for tag, value in tags.items():
                image.SetMetaData(tag, value)
            writer.SetFileName(str(folder / "slice.dcm"))
            writer.Execute(image)
            (folder / "slice.dcm").rename(folder / names.format(f"IM{z:04d}"))
        return folder

    kept = locale.setlocale(locale.LC_ALL)
    yield write
    locale.setlocale(locale.LC_ALL, kept)  # writing leaves the process in the locale "C"
