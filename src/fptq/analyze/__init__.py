"""Which layer hurts, and by how much: errors, sensitivities, costs."""

from fptq.analyze.error import Error, LayerError, layer_errors
from fptq.analyze.exact import leave_one_in, leave_one_out
from fptq.analyze.objective import Objective
from fptq.analyze.overlay import Overlay
from fptq.analyze.sensitivity import Sensitivity, SensitivityOptions, fisher_sensitivity
from fptq.analyze.units import Unit, split, units_of

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
