"""Which codec the next send takes: always the same, a replayed log, or what the measured link makes best.

A policy of a point-to-point send belongs to its sender, and a meter to the receiving end of its link. What
the receiver measured may be reported to the sender (a `LinkEstimate` stands for a meter, as in
dance.gan.reports); the meter of the way back is right for links with equal rates both ways and too hopeful,
or too timid, for others. A policy of collectives belongs to a group of ranks, which decide alike because they
decide from figures that they have agreed on (`Policy`).
"""

from dance.policy.auto import Auto
from dance.policy.calibration import Calibration, read_calibration
from dance.policy.candidates import CANDIDATES, WITH_FEEDBACK, WITHOUT_FEEDBACK
from dance.policy.decision import Decision, Figures, Policy
from dance.policy.explanation import Cost, Explanation, Row
from dance.policy.fixed import Fixed, Schedule
from dance.policy.per_layer import PerLayer
from dance.policy.send import Outcome, Send
from dance.policy.table import Table

__all__ = [
    "CANDIDATES",
    "WITHOUT_FEEDBACK",
    "WITH_FEEDBACK",
    "Auto",
    "Calibration",
    "Cost",
    "Decision",
    "Explanation",
    "Figures",
    "Fixed",
    "Outcome",
    "PerLayer",
    "Policy",
    "Row",
    "Schedule",
    "Send",
    "Table",
    "read_calibration",
]
