"""What each engine really runs in integers, as data: one file for each engine, one line each in the table."""

from __future__ import annotations

from types import MappingProxyType

from fptq.plan.profiles.onnxruntime_cpu import ONNXRUNTIME_CPU
from fptq.plan.profiles.openvino_cpu import OPENVINO_CPU
from fptq.plan.profiles.tensorrt_gpu import TENSORRT_GPU

PROFILES = MappingProxyType({profile.engine: profile for profile in (ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT_GPU)})
"""Profiles by engine name."""

__all__ = ["PROFILES"]
