"""A differentiable run of the graph in torch, for analysis and learning. Engines run what is deployed."""

from fptq.execute.executor import Executor, Hook
from fptq.execute.objective import Objective
from fptq.execute.overlay import Overlay
from fptq.execute.verify import verify

__all__ = ["Executor", "Hook", "Objective", "Overlay", "verify"]
