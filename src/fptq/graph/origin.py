"""Which of the user's nodes a canonical node came from."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the module path of a node, outermost first, its own name last."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A node of the user's graph: what outlives its removal."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The user's graph before it is rewritten: names, no tensors."""

    producers: Mapping[str, _Source]
    parameters: Mapping[str, int]
    constants: frozenset[str]


def snapshot(model: ir.Model) -> Snapshot:
    """Remember the names of a graph whose nodes and values are all named.

    Args:
        model: A graph without functions to inline.
    """
    producers: dict[str, _Source] = {}
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    constants = set(stored)
    for node in model.graph:
        source = _source(node)
        producers.update(dict.fromkeys(source.outputs, source))
        if all(name in constants for name in source.inputs):
            constants.update(source.outputs)
    parameters = {name: tensor.size for name, tensor in stored.items() if tensor is not None}
    return Snapshot(producers=producers, parameters=parameters, constants=frozenset(constants))


def rename_and_trace(model: ir.Model, before: Snapshot) -> Mapping[str, tuple[str, ...]]:
    """Give new nodes and re-laid weights their user's names, in place; return each node's origins.

    A node is traced backwards from its outputs' names to the user's node of its own kind, through nodes that exist
    no more (a BatchNormalization that was folded in), and into the branches that computed its weights.

    Args:
        model: The canonical graph; value names that survived are the user's.
        before: The user's graph.

    Returns:
        For every node name, the ONNX names and module paths it came from, its own kind first.
    """
    _rename_weights(model, before)
    alive = {value.name for node in model.graph for value in node.outputs}
    alive.update(value.name for value in model.graph.inputs)
    found = {node: _trace(node, alive, before) for node in model.graph}
    _rename_nodes(model, found)
    return MappingProxyType({node.name or "": _names(node, sources, before) for node, sources in found.items()})


def module_path(node_name: str) -> str | None:
    """The module path in a node name as torch's older exporter writes it.

    >>> module_path("/down/down.0/conv/Conv")
    'down.0.conv'
    """
    if not node_name.startswith("/"):
        return None
    path: list[str] = []
    for part in node_name.split("/")[1:-1]:
        # A Sequential's child repeats its parent's name: `down/down.0`.
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path) or None


def _source(node: ir.Node) -> _Source:
    return _Source(
        name=node.name or "",
        op_type=node.op_type,
        inputs=tuple(value.name for value in node.inputs if value is not None and value.name),
        outputs=tuple(value.name for value in node.outputs if value.name),
        paths=tuple(_paths(node)),
    )


def _paths(node: ir.Node) -> Iterator[str]:
    written = node.metadata_props.get(SCOPES_KEY)
    if written is not None:
        try:
            scopes = ast.literal_eval(written)
        except (SyntaxError, ValueError):
            return
        # The last scope is the exporter's name of the operation, the one before is the module.
        if isinstance(scopes, list) and len(scopes) > 1 and scopes[-2]:
            yield str(scopes[-2])
        return
    path = module_path(node.name or "")
    if path is not None:
        yield path


def _trace(node: ir.Node, alive: Set[str | None], before: Snapshot) -> tuple[_Source, ...]:
    found: dict[str, _Source] = {}
    pending = [value.name for value in node.outputs if value.name]
    while pending:
        source = before.producers.get(pending.pop(0))
        if source is None or source.name in found:
            continue
        found[source.name] = source
        arrived = source.op_type == node.op_type
        pending += [name for name in source.inputs if name in before.constants or not (arrived or name in alive)]
    return tuple(sorted(found.values(), key=lambda source: source.op_type != node.op_type))


def _names(node: ir.Node, sources: Sequence[_Source], before: Snapshot) -> tuple[str, ...]:
    names: list[str] = []
    for source in sources:
        stored = all(name in before.constants for name in source.outputs)
        names += source.paths if stored else (source.name, *source.paths)
    return tuple(dict.fromkeys(names)) or (node.name or "",)


def _rename_nodes(model: ir.Model, found: Mapping[ir.Node, tuple[_Source, ...]]) -> None:
    taken = {node.name for node in model.graph if node.name}
    for node, sources in found.items():
        if node.name in {source.name for source in sources}:
            continue
        same_kind = [source.name for source in sources if source.op_type == node.op_type]
        wanted = [*same_kind, *(source.name for source in sources), f"{node.op_type}_{node.outputs[0].name}"]
        fresh = next((name for name in wanted if name not in taken), None)
        if fresh is not None:
            node.name = fresh
            taken.add(fresh)


def _rename_weights(model: ir.Model, before: Snapshot) -> None:
    initializers = model.graph.initializers
    wanted: dict[str, list[ir.Value]] = {}
    for value in list(initializers.values()):
        if value.name and value.name not in before.parameters and value.const_value is not None:
            same_size = [
                leaf for leaf in _leaves(value.name, before) if before.parameters[leaf] == value.const_value.size
            ]
            if len(same_size) == 1:
                wanted.setdefault(same_size[0], []).append(value)
    for name, found in wanted.items():
        if len(found) == 1 and name not in initializers:
            found[0].name = name


def _leaves(name: str, before: Snapshot) -> Iterator[str]:
    """The stored tensors that a constant was computed from."""
    pending, seen = [name], set[str]()
    while pending:
        read = pending.pop()
        if read in seen or read not in before.constants:
            continue
        seen.add(read)
        source = before.producers.get(read)
        if source is not None:
            pending += source.inputs
        elif before.parameters.get(read, 0) > 1:
            yield read
