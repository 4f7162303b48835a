"""DeepSeek's EPLB under its own name: ``import eplb; eplb.rebalance_experts(...)`` runs unchanged on libdualpipe.

The same as :mod:`dualpipe.eplb`, which also finds better placements, and proves how good a placement is. Results lie
on the device of the loads, where the original returns them on the CPU. A folder or file ``eplb`` that comes earlier on
Python's path, such as the original's eplb.py beside the program, is taken instead of this; ``python -m dualpipe
doctor`` says which one is.
"""

from dualpipe.eplb import Cluster, Plan, balance, rebalance_experts

__all__ = ["Cluster", "Plan", "balance", "rebalance_experts"]
