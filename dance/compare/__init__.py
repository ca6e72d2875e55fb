"""Several methods over several seeds under one budget: what to run, running it, and a report to look at."""

from dance.compare.folder import Finished, read_run
from dance.compare.method import Method, parse_methods
from dance.compare.plan import Plan, PlannedRun
from dance.compare.running import Ended, execute

__all__ = ["Ended", "Finished", "Method", "Plan", "PlannedRun", "execute", "parse_methods", "read_run"]
