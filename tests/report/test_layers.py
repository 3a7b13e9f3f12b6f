import pytest

from fptq.report.decisions import NodeRecord
from fptq.report.layers import layer_rows, operation_times, refusal_groups, weakest
from fptq.report.tensors import PlacementRecord


def test_a_tensor_takes_the_time_of_the_nodes_that_read_it_once(build_report):
    fused = NodeRecord(nodes=("conv", "relu"), op="Convolution", precision="int8", time_ms=2.0)
    other = NodeRecord(nodes=("pool",), op="Pooling", precision="int8", time_ms=0.5)
    silent = NodeRecord(nodes=("norm",), op="MVN", precision="f32")
    readers = [("conv",), ("conv", "relu"), ("conv", "pool"), ("norm",), ()]
    tensors = tuple(
        PlacementRecord(
            placement=f"t{n}", tensor=f"t{n}", kind="activation", requested="u8/tensor", consumers=consumers
        )
        for n, consumers in enumerate(readers)
    )
    rows = layer_rows(build_report(nodes=(fused, other, silent), placements=tensors))
    assert [row.time_ms for row in rows] == [2.0, 2.0, 2.5, None, None]


def test_fallbacks_are_marked(report):
    fell_back = [row.number for row in layer_rows(report) if row.fell_back]
    assert fell_back == [15, 16, 39, 40]


def test_the_weakest_are_the_noisiest(report):
    levels = sorted(p.sqnr_local_db for p in report.placements if p.sqnr_local_db is not None)
    assert [p.sqnr_local_db for p in weakest(report)] == levels[:3]


def test_refusals_with_one_reason_are_one_group(report):
    groups = refusal_groups(report)
    assert [(op, len(members)) for op, _, members in groups] == [
        ("InstanceNormalization", 34),
        ("Conv", 1),
        ("Resize", 1),
    ]


def test_time_by_operation_adds_up(report):
    rows = operation_times(report)
    assert sum(row.float_ms for row in rows) == pytest.approx(sum(node.time_ms for node in report.float_nodes))
    assert rows[0].op == "Convolution"
    assert sum(row.quantized_ms for row in rows) == pytest.approx(sum(node.time_ms for node in report.nodes))
    assert next(row for row in rows if row.op == "MVN").integer_ms == 0
