"""Decisions: which placements pay on this machine, by measuring; which formats fit a budget, by an integer program."""

from fptq.search.budget import Amount, Budget
from fptq.search.candidates import Candidate, Candidates
from fptq.search.gate import Gate, Outcome, Trial
from fptq.search.knapsack import solve
from fptq.search.pareto import front
from fptq.search.table import Assignment, Choice, Options

__all__ = [
    "Amount",
    "Assignment",
    "Budget",
    "Candidate",
    "Candidates",
    "Choice",
    "Gate",
    "Options",
    "Outcome",
    "Trial",
    "front",
    "solve",
]
