"""From a plan and samples to an encoding: collect once, solve for as many recipes as wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from fptq.cache import Cache
from fptq.calibrate.collect import CollectOptions, collect
from fptq.calibrate.observers.base import Observer, WeightObserver
from fptq.calibrate.observers.lp import Lp
from fptq.calibrate.observers.minmax import MinMax
from fptq.calibrate.states import Reading
from fptq.calibrate.statistics import STATES, Statistic, Statistics
from fptq.errors import ConfigError, ModelError
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.graph.rest import unmap
from fptq.numerics import PerChannel, QuantizerSpec, UniformParams, grouped, ranges, scale_shape
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Plan
from fptq.types import Array, FeedSource, Progress, silent


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How ranges are found.

    Attributes:
        observer: Estimator for activations.
        weight_observer: Estimator for stored weights.
        run: Threads and checkpoints of the float runs.
    """

    observer: Observer = field(default_factory=Lp)
    weight_observer: WeightObserver = field(default_factory=MinMax)
    run: CollectOptions = field(default_factory=CollectOptions)


def calibrate(
    model: Model,
    plan: Plan,
    feeds: FeedSource,
    *,
    options: CalibrationOptions | None = None,
    store: Cache | None = None,
    progress: Progress = silent,
) -> Encoding:
    """Find scale and zero point of every placement of a plan.

    Args:
        model: The float network that the plan was made for.
        plan: What becomes what.
        feeds: Calibration samples, one run each; not walked when only weights are quantized.
        options: Observers, threads, checkpoints.
        store: Keeps statistics, so that an interrupted run goes on where it was and a finished one is not repeated.
        progress: Told after every sample.

    Raises:
        DataError: There is no sample, one does not fit the network, or a tensor is not finite.
        ModelError: The plan names a tensor that the network does not have, or a weight is not finite.
        ConfigError: The plan asks for what cannot be: per-block activations, ties of different quantizers.
        EngineError: ONNX Runtime failed.
    """
    options = options or CalibrationOptions()
    statistics = collect(
        model, needed(plan, [options.observer]), feeds, options=options.run, store=store, progress=progress
    )
    return solve(model, plan, statistics, options=options)


def needed(plan: Plan, observers: Iterable[Observer]) -> tuple[Statistic, ...]:
    """What must be known of the activations of a plan for all of these observers."""
    kinds = dict.fromkeys(observer.needs for observer in observers)
    return tuple(
        dict.fromkeys(Statistic.needed(p.value, plan.specs[p], kind) for p in plan.activations for kind in kinds)
    )


def solve(model: Model, plan: Plan, statistics: Statistics, *, options: CalibrationOptions) -> Encoding:
    """The encoding that the observers find from statistics; needs no run.

    Args:
        model: The float network.
        plan: What becomes what.
        statistics: What `collect` found for `needed(plan, ...)`, or more.
        options: The observers.

    Raises:
        ModelError: A weight does not exist or is not finite.
        ConfigError: Tied placements have different quantizers or shapes.
    """
    params: dict[Placement, UniformParams] = {}
    for placement in plan.specs:
        if placement not in params:
            tied = sorted(plan.tied(placement))
            params |= dict.fromkeys(tied, _group_params(model, plan, tied, statistics, options))
            for weight in plan.weights.intersection(tied):
                unmap(model.graph.initializers[weight.value])
    return Encoding(plan=plan, params={p: params[p] for p in plan.specs}, model_sha256=model.sha256)


def weight_params(array: Array, spec: QuantizerSpec, observer: WeightObserver) -> UniformParams:
    """The numbers of a quantizer of a stored tensor.

    Args:
        array: Any floating dtype and shape, finite.
        spec: The quantizer: per tensor, channel or block.
        observer: How the ranges are found.
    """
    return _shared_weight_params({"": np.asarray(array, dtype=np.float32)}, spec, observer)


def _group_params(
    model: Model, plan: Plan, tied: list[Placement], statistics: Statistics, options: CalibrationOptions
) -> UniformParams:
    """The numbers that tied placements share."""
    spec = plan.specs[tied[0]]
    if any(plan.specs[placement] != spec for placement in tied):
        specs = ", ".join(f"{placement}: {plan.specs[placement]}" for placement in tied)
        raise ConfigError(f"tied placements have different quantizers ({specs})", rule="a tie shares one scale")
    stored = {p.value: _stored(model, p.value) for p in tied if p in plan.weights}
    if plan.weights.issuperset(tied):
        return _shared_weight_params(stored, spec, options.weight_observer)
    kind = options.observer.needs
    asked = dict.fromkeys(Statistic.needed(p.value, spec, kind) for p in tied if p not in plan.weights)
    missing = [statistic.value for statistic in asked if statistic not in statistics.states]
    if missing:
        raise ConfigError(f"no {kind} of {missing} were collected", rule=f"{options.observer.name} needs them")
    states = [statistics.states[statistic] for statistic in asked]
    states += [STATES[kind].of(_reading(array, spec)) for array in stored.values()]
    if len({state.extent for state in states}) > 1:
        raise ConfigError(f"tied placements {list(map(str, tied))} differ in channels", rule="a tie shares one scale")
    return options.observer.params(spec, reduce(lambda one, other: one.joined(other), states))


def _shared_weight_params(stored: Mapping[str, Array], spec: QuantizerSpec, observer: WeightObserver) -> UniformParams:
    arrays = list(stored.values())
    if len({scale_shape(spec.granularity, array.shape) for array in arrays}) > 1:
        raise ConfigError(f"tied weights {list(stored)} differ in shape", rule="a tie shares one scale")
    rows = np.concatenate([grouped(array, spec.granularity) for array in arrays], axis=1)
    found = observer.row_params(spec, rows)
    shape = scale_shape(spec.granularity, arrays[0].shape)
    return UniformParams(scale=found.scale.reshape(shape), zero_point=found.zero_point.reshape(shape))


def _stored(model: Model, name: str) -> Array:
    """A weight in f32."""
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise ModelError(f"the network stores no tensor {name!r}", rule="a plan belongs to one network")
    array = np.asarray(value.const_value.numpy(), dtype=np.float32)
    if not np.isfinite(array).all():
        raise ModelError(f"weight {name!r} holds NaN or an infinity", rule="weights are finite")
    return array


def _reading(array: Array, spec: QuantizerSpec) -> Reading:
    """A stored tensor as if a run had shown all of it."""
    low, high = ranges(array, spec.granularity)
    if not isinstance(spec.granularity, PerChannel):
        return Reading(low=low, high=high, sample=array.reshape(-1))
    rows = grouped(array, spec.granularity)
    channels = np.repeat(np.arange(rows.shape[0]), rows.shape[1])
    return Reading(low=low, high=high, sample=rows.reshape(-1), channels=channels)
