"""A clone of a model that rewrites write into, one after the other, before it is a model again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import onnx_ir as ir

from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.plan.encoding import Encoding


@dataclass(kw_only=True)
class Draft:
    """A network that is being changed.

    Attributes:
        model: What is cloned.
        changed: The clone.
        origin: What the user calls its nodes.
    """

    model: Model
    changed: ir.Model = field(init=False)
    origin: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.changed = self.model.clone()
        self.origin = dict(self.model.origin)

    def finished(self) -> Model:
        """The changed network."""
        put_to_rest(self.changed)
        return replace(self.model, graph_model=self.changed, origin=MappingProxyType(self.origin))


Change = Callable[[Draft, Encoding], Encoding]
"""A rewrite of a draft, in place; it returns the encoding of what results, but for the network's fingerprint."""


def applied(model: Model, encoding: Encoding, *changes: Change) -> tuple[Model, Encoding]:
    """A network after changes, with its encoding: cloned once, however many they are.

    Args:
        model: The float network.
        encoding: Its quantizers.
        changes: Each is for what the one before has left.
    """
    draft = Draft(model=model)
    for change in changes:
        encoding = change(draft, encoding)
    changed = draft.finished()
    return changed, replace(encoding, model_sha256=changed.sha256)
