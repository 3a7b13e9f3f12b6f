"""Which layer hurts, and by how much: errors, sensitivities, costs."""

from fptq.analyze.error import Error, LayerError, layer_errors
from fptq.analyze.exact import leave_one_in, leave_one_out
from fptq.analyze.sensitivity import Sensitivity, SensitivityOptions, fisher_sensitivity
from fptq.analyze.units import Unit, split, units_of
from fptq.execute.objective import Objective
from fptq.execute.overlay import Overlay

__all__ = [
    "Error",
    "LayerError",
    "Objective",
    "Overlay",
    "Sensitivity",
    "SensitivityOptions",
    "Unit",
    "fisher_sensitivity",
    "layer_errors",
    "leave_one_in",
    "leave_one_out",
    "split",
    "units_of",
]
