"""A real network on a real scan, from public packages."""

from fptq.demo.brain import DemoCase, brain_demo

__all__ = ["DemoCase", "brain_demo"]
