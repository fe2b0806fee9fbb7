"""The fault drill (paper 3.3.4, table 5): a real run on this machine that is broken on purpose, and what came of it."""

from herder.drill.run import FAULTS, Drill, drill, prepared, table

__all__ = ["FAULTS", "Drill", "drill", "prepared", "table"]
