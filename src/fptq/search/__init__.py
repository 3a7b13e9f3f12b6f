"""Decisions by measurement: which placements pay on this machine."""

from fptq.search.candidates import Candidate, Candidates
from fptq.search.gate import Gate, Outcome, Trial

__all__ = ["Candidate", "Candidates", "Gate", "Outcome", "Trial"]
