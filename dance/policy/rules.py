"""How one candidate is taken rather than another: least time, or least error within a time budget.

Pure functions of what is predicted and of what was chosen before, so that ranks that agree on both choose
alike. A dwell that grows where a less lossy codec had to be given up again is that of rates in Lacage et al.
2004 (Adaptive ARF).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dance.codecs import Codec
from dance.codecs import codec as to_codec

SETTLING_CALLS = 3  # up to here the best is taken at once, and what is in doubt is tried
_GAIN = 0.04  # a change must promise so much, or noise would make candidates come and go
_DWELL_CALLS = 8  # so long after a change, unless the link has changed, ...
_DWELL_GAIN = 0.25  # ... the next must promise so much
_NEARLY = 1.1  # of a budget, where noise explains the excess
_MOST_PATIENCE = 8  # times the usual dwell
_COLD_SHARE = 0.8
_TRIALS = 2  # of one candidate, until the link changes ...
_CLOSE = 1.3  # ... but not of no compression where it takes about as long: a look at it costs little
_TRIAL_SHARE = 0.01  # of the time spent pays for trials
_TRIAL_FACTOR = 1.5  # what is predicted to take longer, at best, is not tried in the first calls


@dataclass(kw_only=True)
class Course:
    """What was chosen for one kind of send so far; ``at`` and ``since`` count its calls, or rounds."""

    codec: Codec | None = None
    at: int = 0
    since: int = 0
    measured: bool = (
        False  # whether the link was known when codec was chosen: what was chosen blind binds nobody
    )
    agreed: int = 0  # calls whose outcome all ranks know
    regime: int = 0  # of the link, when codec was chosen
    trials: dict[Codec, int] = field(default_factory=dict)
    tried_at: int = 0
    patience: int = 1  # how many times the usual dwell passes before a less lossy codec is taken again
    rose: bool = False  # whether codec was taken for being less lossy

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in vars(self).items() if name not in ("codec", "trials")},
            "codec": None if self.codec is None else str(self.codec),
            "trials": [[str(codec), count] for codec, count in self.trials.items()],
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Course:
        codec = None if state["codec"] is None else to_codec(state["codec"])
        trials = {to_codec(text): count for text, count in state["trials"]}
        return Course(**{**state, "codec": codec, "trials": trials})


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A candidate: predicted seconds, their standard deviation, what it may take at best, and how often it
    has been measured since the link changed; ``direct``: it is not compressed.
    """

    codec: Codec
    seconds: float
    deviation_s: float = 0.0
    least_s: float
    measured: int = 0
    direct: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rule takes, and why; a trial is for one call, to find out what it takes."""

    codec: Codec
    reason: str
    trial: bool = False


def least_time(prospects: Sequence[Prospect], course: Course, regime: int) -> Choice:
    """Returns the candidate of least time, the one in use unless another promises 4 % less.

    First calls are cold, so that at the start compressing must promise a fifth less than not compressing.
    """
    best = min(prospects, key=_warm_s)
    held = next((each for each in prospects if each.codec == course.codec), None)
    chosen, reason = best, "the least time"
    if held is not None and held is not best and course.measured and course.at > SETTLING_CALLS:
        dwells = course.at - course.since < _DWELL_CALLS and course.regime == regime
        dwells &= not (best.direct and best.measured == 1)  # what its first trial has told, with its discount
        gain = _DWELL_GAIN if dwells else _GAIN
        if _warm_s(best) > (1.0 - gain) * _warm_s(held):
            soon = f", {_DWELL_CALLS} calls after its last change" if dwells else ""
            chosen, reason = held, f"{best.codec} would save less than {gain:.0%}{soon}"
    return _trial(prospects, course, chosen) or Choice(codec=chosen.codec, reason=reason)


def _warm_s(prospect: Prospect) -> float:
    cold = prospect.direct and prospect.measured == 1
    return prospect.seconds * (_COLD_SHARE if cold else 1.0)


def _trial(prospects: Sequence[Prospect], course: Course, chosen: Prospect) -> Choice | None:
    """Returns a candidate to try for one call: at the start one that is in doubt, later what may be faster
    than it seems, as often as a share of the time pays for what the trial is expected to cost.
    """
    if not course.agreed:
        return None
    if course.codec not in (None, chosen.codec) and course.measured:
        return None  # one change at a time
    budget_s = _TRIAL_SHARE * (course.at - course.tried_at) * chosen.seconds
    for each in sorted(prospects, key=lambda each: each.least_s):
        tried = course.trials.get(each.codec, 0)
        close = each.direct and each.seconds < _CLOSE * chosen.seconds
        if each.codec == chosen.codec or (tried >= _TRIALS and not close):
            continue
        unknown = each.direct and not each.measured and not tried
        if unknown and each.least_s < _TRIAL_FACTOR * chosen.seconds:
            return Choice(codec=each.codec, reason="tried once: it may take less than predicted", trial=True)
        expected_s = 0.25 * each.seconds + 0.75 * each.least_s
        more_s = max(expected_s - chosen.seconds, 0.05 * chosen.seconds)
        promising = unknown or each.least_s < (1.0 - _GAIN) * chosen.seconds
        if promising and more_s <= budget_s:
            share = f"{_TRIAL_SHARE:.0%} of the time pays for trials"
            return Choice(codec=each.codec, reason=f"tried: {share}", trial=True)
    return None


def least_error(
    prospects: Sequence[Prospect], course: Course, budget_s: float, *, dwell: int, headroom: float
) -> Choice:
    """Returns the first candidate, in order from least to most lossy, that takes no more than ``budget_s``.

    A less lossy one than that in use must fit ``headroom`` of the budget, its deviation included, and waits
    ``dwell`` after the last change, the longer the more often it was taken in vain. One that fits at best is
    tried then: what was taken for the time of bytes may be latency.
    """
    best = next((k for k, each in enumerate(prospects) if each.seconds <= budget_s), None)
    now = next((k for k, each in enumerate(prospects) if each.codec == course.codec), None)
    budget, room = f"{budget_s:.6g} s", headroom * budget_s
    if now is None or not course.measured:
        pass
    elif best is None or best > now:
        held = prospects[now]
        if held.seconds - held.deviation_s <= budget_s and held.seconds < _NEARLY * budget_s:
            return Choice(codec=held.codec, reason=f"may still fit {budget}: the excess is within the noise")
    elif best < now:
        held, waits = prospects[now], dwell * course.patience
        if course.at - course.since < waits:
            return Choice(codec=held.codec, reason=f"stays for {waits} rounds after its last change")
        sure = (k for k in range(now) if prospects[k].seconds + prospects[k].deviation_s <= room)
        best = next(sure, None)
        if best is None:
            return Choice(codec=held.codec, reason=f"nothing less lossy fits {headroom:g} of {budget}")
    elif now:
        held, better = prospects[now], prospects[now - 1]
        waits = dwell * min(2 ** sum(course.trials.values()), _MOST_PATIENCE)
        waited = course.at - max(course.since, course.tried_at) >= waits
        if waited and held.seconds <= room and better.least_s <= room:
            reason = "tried once: it may take less than predicted"
            return Choice(codec=better.codec, reason=reason, trial=True)
    if best is None:
        fastest = min(prospects, key=lambda each: each.seconds)
        return Choice(codec=fastest.codec, reason=f"nothing fits {budget}: the fastest")
    return Choice(codec=prospects[best].codec, reason=f"the least lossy that fits {budget}")


def commit(
    course: Course, choice: Choice, order: Sequence[Codec], *, dwell: int, regime: int, measured: bool
) -> None:
    """Notes in ``course`` what was chosen at ``course.at``."""
    if course.regime != regime:
        course.trials.clear()
        course.tried_at = course.at  # what was spent before was spent at another pace
    if choice.trial:
        course.trials[choice.codec] = course.trials.get(choice.codec, 0) + 1
        course.tried_at = course.at
        return
    if choice.codec == course.codec and course.measured:
        course.regime = regime
        return
    if course.codec in order and course.measured and measured:
        lossier = order.index(choice.codec) > order.index(course.codec)
        soon = course.at - course.since < 2 * dwell * course.patience
        if lossier and course.rose:
            course.patience = min(2 * course.patience, _MOST_PATIENCE) if soon else 1
        course.rose = not lossier
        course.trials.clear()
    course.since = course.tried_at = course.at
    course.codec, course.measured, course.regime = choice.codec, measured, regime
