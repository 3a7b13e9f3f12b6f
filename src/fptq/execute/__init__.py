"""A differentiable run of the graph in torch, for analysis and learning. Engines run what is deployed."""

from fptq.execute.executor import Executor, Hook
from fptq.execute.verify import verify

__all__ = ["Executor", "Hook", "verify"]
