"""PyTorch modules through the door."""

from collections import namedtuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fptq.errors import ConfigError, DataError, ModelError, ParityError  # noqa: E402
from fptq.graph import from_torch, parity  # noqa: E402
from fptq.graph.load import LoadOptions, load  # noqa: E402
from fptq.graph.parity import run_graph  # noqa: E402
from fptq.graph.trust import Trust  # noqa: E402

STATIC = LoadOptions(dynamic="none")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.norm(self.conv(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(Block(1), Block(4))
        self.up = nn.ConvTranspose3d(4, 4, 2, 2, bias=False)
        self.norm = nn.InstanceNorm3d(4)
        self.act = nn.PReLU()
        self.head = nn.Conv3d(4, 2, 1)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(self.act(self.norm(self.up(self.down(x)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def agrees(made, module, *args, **kwargs):
    """The engine's result, put together by the signature, equals the module's."""
    feeds = {name: tensor.numpy() for name, tensor in made.signature.feeds(args, kwargs).items()}
    outputs = {name: torch.from_numpy(array) for name, array in run_graph(made.graph_model, feeds).items()}
    with from_torch.evaluating(module):
        expected = module(*args, **kwargs)
    torch.testing.assert_close(made.signature.result(outputs), expected, rtol=1e-4, atol=1e-5)


def test_a_volume_network(net, capfd):
    x = torch.randn(1, 1, 8, 8, 8)
    made = load(net, example=x)
    assert [node.op_type for node in made.graph] == [
        *("Conv", "Relu") * 2,
        "ConvTranspose",
        "InstanceNormalization",
        "PRelu",
        "Conv",
    ]
    assert made.inputs[0].shape == ("batch", 1, 8, 8, 8)
    assert made.notes == ()
    assert made.source.endswith(".Net")
    assert "down.0.conv" in made.origin[made.graph[0].name]
    assert "down.0.norm" in made.origin[made.graph[0].name]
    assert "down.0.conv.weight" in made.graph.initializers
    agrees(made, net, x)
    agrees(made, net, torch.randn(3, 1, 8, 8, 8))
    out, err = capfd.readouterr()
    assert out + err == ""


def test_training_flags_come_back_and_weights_are_copies(net):
    net.train()
    net.down[0].norm.eval()
    flags = [part.training for part in net.modules()]
    x = torch.randn(2, 1, 8, 8, 8)
    made = load(net, example=x.numpy(), options=STATIC)
    assert [part.training for part in net.modules()] == flags
    before = run_graph(made.graph_model, {"x": x.numpy()})
    nn.init.zeros_(net.head.weight)
    np.testing.assert_equal(run_graph(made.graph_model, {"x": x.numpy()}), before)


def test_axes_that_differ_between_samples_become_dynamic(net):
    samples = [torch.randn(1, 1, 8, 8, size) for size in (8, 10, 8)]
    made = load(net, example=samples[0], others=samples[1:])
    assert made.inputs[0].shape == ("batch", 1, 8, 8, "x_4")
    assert made.outputs[0].shape == ("batch", 2, 16, 16, "2*x_4")
    agrees(made, net, samples[1])


def test_axes_by_name_must_hold(net):
    x = torch.randn(1, 1, 8, 8, 8)
    made = load(net, example=x, options=LoadOptions(dynamic="x:2=depth"))
    assert made.inputs[0].shape == (1, 1, "depth", 8, 8)
    with pytest.raises(ConfigError, match="inputs are x"):
        load(net, example=x, options=LoadOptions(dynamic="y:0=batch"))
    with pytest.raises(ConfigError, match="x has 5 axes"):
        load(net, example=x, options=LoadOptions(dynamic="x:7=far"))
    with pytest.raises(ModelError, match="cannot be exported"):
        load(net, example=x, options=LoadOptions(dynamic="x:1=channels"))


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(1, 4, -1) * float(x.shape[0] == 1)


def test_a_batch_that_the_code_fixes_is_exported_fixed_with_a_note():
    x = torch.randn(1, 2, 6)
    made = load(FixedBatch(), example=x)
    assert made.inputs[0].shape == (1, 2, 6)
    assert "fixed shapes" in made.notes[0]
    agrees(made, FixedBatch(), x)


Pair = namedtuple("Pair", ["mean", "rest"])


class Nested(nn.Module):
    """Keyword-only tensors, a dict argument, flags, `**kwargs`, and a result of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x, parts=None, *, scale=None, double=False, **extra):
        h = self.lin(x)
        if parts is not None:
            h = h + parts["a"] * parts["b"][0]
        if "shift" in extra:
            h = h + extra["shift"]
        if double:
            h = h * 2
        return {"pair": Pair(h.mean(1), (h, None)), "count": 3, "scaled": h if scale is None else h * scale}


def test_any_call_and_any_result():
    module = Nested()
    kwargs = {
        "parts": {"a": torch.randn(2, 3), "b": [torch.randn(2, 3)]},
        "scale": torch.tensor(2.0),
        "double": True,
        "shift": torch.randn(2, 3),
    }
    x = torch.randn(2, 4)
    made = load(module, example=((x,), kwargs))
    assert [info.name for info in made.inputs] == ["x", "parts_a", "parts_b_0", "scale", "shift"]
    assert made.inputs[0].shape == ("batch", 4)
    agrees(made, module, x, **kwargs)
    agrees(made, module, x=x, **kwargs)
    with pytest.raises(DataError, match=r"double is False.*exported with True"):
        made.signature.feeds((x,), {**kwargs, "double": False})
    with pytest.raises(DataError, match="exported with x, parts"):
        made.signature.feeds((x,), {})


def test_a_loaders_targets_are_left_out_and_doubles_are_cast(net):
    sample = [np.zeros((1, 1, 8, 8, 8)), np.array([3])]
    made = load(net, example=sample, options=STATIC)
    assert [str(info) for info in made.inputs] == ["x: float32[1, 1, 8, 8, 8]"]


def test_the_same_tensor_returned_twice():
    class Twice(nn.Module):
        def forward(self, x):
            y = x * 2
            return y, y, x

    made = load(Twice(), example=torch.randn(2, 3))
    assert len({info.name for info in made.outputs}) == 3
    agrees(made, Twice(), torch.randn(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_modules_are_widened(dtype):
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    made = load(module, example=torch.randn(3, 8), options=STATIC)
    assert made.inputs[0].dtype == np.float32
    assert str(dtype).removeprefix("torch.") in made.notes[0]


def test_what_cannot_be_loaded():
    module = nn.Linear(4, 3)
    with pytest.raises(DataError, match="without an example"):
        load(module)
    with pytest.raises(ModelError, match=r"Linear cannot be run on the example \(input \[2, 5\]\)"):
        load(module, example=torch.randn(2, 5))
    with pytest.raises(DataError, match="no tensor"):
        load(module, example=(None,))
    with pytest.raises(DataError, match="cannot be called so"):
        load(module, example={"nothing": torch.zeros(1)})


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_code_that_depends_on_values_cannot_be_exported():
    with pytest.raises(ModelError, match="Branching cannot be exported"):
        load(Branching(), example=torch.ones(2, 3))


def test_a_program_file_needs_trust(net, tmp_path):
    x = torch.randn(1, 1, 8, 8, 8)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net.eval(), (x,)), path)
    with pytest.raises(ModelError, match=r"can execute code.*--trust"):
        load(path)
    made = load(path, options=LoadOptions(trust=Trust.SOURCE))
    assert made.source == str(path)
    assert "down.0.conv" in made.origin[made.graph[0].name]
    agrees(made, net, x)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"net.pt2 cannot be read"):
        load(path, options=LoadOptions(trust=Trust.SOURCE))


def test_the_first_wrong_value_is_named(net, monkeypatch):
    x = torch.randn(1, 1, 8, 8, 8)
    original = parity.run_graph

    def broken(model, feeds, names=()):
        """A runtime whose second convolution is wrong."""
        model = model.clone()
        weight = [node for node in model.graph if node.op_type == "Conv"][1].inputs[1]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 1.01)
        return original(model, feeds, names)

    monkeypatch.setattr(parity, "run_graph", broken)
    with pytest.raises(ParityError, match=r"value 'getitem_3' is the first that differs from Net"):
        load(net, example=x, options=STATIC)
