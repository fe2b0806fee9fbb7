"""A run before it starts: layout, memory, time, interruptions and cost (paper 3.3.2 to 3.3.4; model cards for carbon).

`plan` answers all of it for one model on one cluster. Plain Python and numpy; nothing is measured here.
"""

from herder.plan.cost import Cost, Prices, cost
from herder.plan.faults import Costs, Faults, simulate
from herder.plan.layout import parse_layout, refusal
from herder.plan.memory import memory_per_rank
from herder.plan.run import Candidate, Plan, plan
from herder.plan.timing import FLASH_2, KERNEL_EFFICIENCY, Software, Timing, time_step
from herder.train.devices import GPUS, Gpu, find_gpu

__all__ = [
    "FLASH_2",
    "GPUS",
    "KERNEL_EFFICIENCY",
    "Candidate",
    "Cost",
    "Costs",
    "Faults",
    "Gpu",
    "Plan",
    "Prices",
    "Software",
    "Timing",
    "cost",
    "find_gpu",
    "memory_per_rank",
    "parse_layout",
    "plan",
    "refusal",
    "simulate",
    "time_step",
]
