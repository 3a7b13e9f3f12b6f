"""Streaming calibration: statistics inside the graph, observers outside."""

from fptq.calibrate.calibrate import CalibrationOptions, calibrate, needed, solve, weight_params
from fptq.calibrate.collect import CollectOptions, collect
from fptq.calibrate.observers import OBSERVERS, WEIGHT_OBSERVERS, observer, weight_observer
from fptq.calibrate.statistics import Statistic, Statistics

__all__ = [
    "OBSERVERS",
    "WEIGHT_OBSERVERS",
    "CalibrationOptions",
    "CollectOptions",
    "Statistic",
    "Statistics",
    "calibrate",
    "collect",
    "needed",
    "observer",
    "solve",
    "weight_observer",
    "weight_params",
]
