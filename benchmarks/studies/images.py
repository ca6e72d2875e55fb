"""AC-GAN and its rivals on images split over nodes: studies a, b, c (CIFAR-10) and i (convolutional)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.studies.claims import Names, claims
from benchmarks.studies.frame import Results, Study, Wanted, best_rate, last_fid
from benchmarks.studies.text import at_bytes, factors, finals
from dance.compare import Method
from dance.compare.plan import growing

SKEWED, EVEN = "classes:2", "iid"
SEEDS = (0, 1, 2)
MARKS = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0)
FEW = (1.0, 2.0, 3.0)  # for methods that exchange one-bit models, the only ones to send so little
RATES = (1e-3, 3e-4, 2e-3)  # the first is ours
HUB, ADAPTIVE = "AC-GAN hub, sign", "AC-GAN adaptive"
# The adaptive layout without its first phase, and with more bytes for it.
LOW, FINE = "AC-GAN low-rank", "AC-GAN adaptive, int4 every 100 rounds"
LOCAL = "AC-GAN hub, sign, local Adam"
MD, FL, GOSSIP = "MD-GAN", "FL-GAN", "Gossip GAN"
OURS = "with our codecs"
INT4 = "int4 differences"
STILL = "no momentum"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One data set: what all its runs share, and how long they are."""

    common: Mapping[str, Any]
    groups: tuple[str, ...] = (SKEWED, EVEN)
    seeds: tuple[int, ...] = SEEDS
    rounds: int = 2500
    rates: tuple[float, ...] = RATES
    parts: bool = True  # also the pieces of our recipe, and rivals with our codecs and without momentum
    still: tuple[tuple[str, str], ...] = ()  # without `parts`: groups and rivals that have no momentum

    def wanted(self, results: Results) -> list[Wanted]:
        """All that can be said now, the most important first."""
        asked = [each for group in self.groups for each in self._of_group(group, results)]
        return sorted(asked, key=self._place)

    def goes_still(self, results: Results, group: str, rival: str, rate: float) -> bool:
        """Whether a rival goes without momentum: seed 0 is better by a tenth, for less may be luck."""
        if not self.parts:
            return (group, rival) in self.still
        usual, still = (last_fid(results, group, _label(rival, rate, still)) for still in (False, True))
        return usual is not None and still is not None and still < 0.9 * usual

    def _place(self, wanted: Wanted) -> tuple[int, int]:
        """By seed, skewed data first; rivals with our codecs and further rates for iid come last."""
        skewed = wanted.group == self.groups[0]
        swept = not skewed and wanted.method.changes.get("d_learning_rate", self.rates[0]) != self.rates[0]
        late = swept or (OURS in wanted.method.label and wanted.seed > 0)
        return late, 2 * wanted.seed + (not skewed)

    def _of_group(self, group: str, results: Results) -> Iterator[Wanted]:
        rivals = (MD, FL, GOSSIP) if self.parts and group != EVEN else (MD, FL)
        swept = {rival: {rate: _label(rival, rate) for rate in self.rates} for rival in rivals}
        for rate in self.rates:
            for rival in rivals:
                yield self._run(group, rival, 0, rate)
        best = {rival: best_rate(results, group, labels) for rival, labels in swept.items()}
        for seed in self.seeds:
            for label in (HUB, ADAPTIVE):
                yield self._run(group, label, seed)
            for rival, rate in best.items():
                if rate is None:
                    continue
                if self.parts and seed == 0:
                    yield self._run(group, rival, seed, rate, still=True)
                still = self.goes_still(results, group, rival, rate)
                yield self._run(group, rival, seed, rate, still=still)
                for variant in VARIANTS if self.parts else ():
                    if rival in VARIANTS[variant]:
                        yield self._run(group, rival, seed, rate, variant, still=still)
            if self.parts:
                for label in (FINE,) if group == EVEN else (LOCAL, LOW):
                    yield self._run(group, label, seed)

    def _run(
        self,
        group: str,
        name: str,
        seed: int,
        rate: float | None = None,
        variant: str | None = None,
        *,
        still: bool = False,
    ) -> Wanted:
        """`rate`, `variant` (OURS or INT4) and `still`, without momentum: of a rival."""
        common = {
            **self.common,
            "partition": group,
            "evaluate_every": 0,
            "checkpoint_every": 500,
            "stack": "auto",
        }
        common |= self._length(name, group)
        if name == ADAPTIVE or (name == FL and variant == OURS):
            common["evaluate_megabytes"] = [*FEW, *MARKS]
        label = name if rate is None else _label(name, rate, still)
        return Wanted(
            group=group,
            method=Method(
                label=f"{label}, {variant}" if variant else label,
                algorithm=ALGORITHMS.get(name, "ac-gan"),
                changes={
                    **CHANGES[name],
                    **_tuned(rate, still),
                    **(VARIANTS[variant][name] if variant else {}),
                },
            ),
            seed=seed,
            common=common,
        )

    def _length(self, name: str, group: str) -> dict[str, Any]:
        """Equal rounds, but what sends little goes on, up to so many MB."""
        rounds, limit = self.rounds, None
        if name == LOW or (name == ADAPTIVE and group != EVEN):  # 15 kB a round
            rounds, limit = round(1.9 * self.rounds), 61.0
        elif name in (ADAPTIVE, FINE, FL, GOSSIP):
            rounds, limit = round((2.3 if group == EVEN else 1.5) * self.rounds), 31.0
        if name == LOW:
            rounds = round(1.6 * self.rounds)
        values: dict[str, Any] = {"rounds": rounds, "evaluate_at": list(growing(rounds, growth=1.5))}
        values["evaluate_megabytes"] = list(MARKS)
        return values | ({"megabytes": limit} if limit else {})


def _label(rival: str, rate: float, still: bool = False) -> str:
    return f"{rival}, rate {rate:g}" + (f", {STILL}" if still else "")


def _tuned(rate: float | None, still: bool) -> dict[str, Any]:
    if rate is None:
        return {}
    return {"d_learning_rate": rate, "g_learning_rate": rate, "beta1": 0.0 if still else 0.5}


_SIGN = {"gossip_codec": "sign", "image_codec": "int8"}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    HUB: {**_SIGN, "layout": "model-parallel"},
    ADAPTIVE: {"layout": "adaptive"},
    FINE: {"layout": "adaptive", "acgan.sync_codec": "int4", "acgan.sync_period": 100},
    LOW: {
        "layout": "model-parallel",
        "acgan.aggregation": "low-rank",
        "acgan.rank": 2,
        "d_optimizer": "adam",
        "image_codec": "int4",
    },
    LOCAL: {**_SIGN, "layout": "model-parallel", "d_optimizer": "adam"},
    MD: {},
    FL: {},
    GOSSIP: {},
}
ALGORITHMS = {MD: "md-gan", FL: "fl-gan", GOSSIP: "gossip-gan"}
WITH_OUR_CODECS: Mapping[str, Mapping[str, Any]] = {
    MD: {
        "mdgan.image_codec": "int8",
        "mdgan.feedback_codec": "sign:block=image",
        "mdgan.swap_codec": "int8",
    },
    FL: {"flgan.deltas": True, "flgan.up_codec": "sign", "flgan.down_codec": "sign"},
}
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    OURS: WITH_OUR_CODECS,
    INT4: {FL: {"flgan.deltas": True, "flgan.up_codec": "int4", "flgan.down_codec": "int4"}},
}


def tables(setting: Setting, results: Results) -> str:
    """For each split: the end of every method, the FID at equal bytes, and the factors that are claimed."""
    parts = []
    for group in setting.groups:
        labels = _shown(setting, group, results)
        if not labels:
            continue
        parts += [f"#### {group}: at the end", finals(results, group, labels)]
        parts += [
            f"#### {group}: FID of the raw generator for so many MB a D-Node",
            at_bytes(results, group, labels, [*FEW, *MARKS]),
        ]
        names = _names(setting, results, group)
        rivals = [names.md, names.fl, *(f"{rival}, {OURS}" for rival in (names.md, names.fl))]
        parts.append(factors(results, group, [HUB, ADAPTIVE], rivals))
    skewed, even = (_names(setting, results, group) for group in (SKEWED, EVEN))
    if setting.parts and (text := claims(results, skewed, even)):
        parts += ["#### What was aimed at", text]
    return "\n\n".join(part for part in parts if part)


def _names(setting: Setting, results: Results, group: str) -> Names:
    """Whom the claims about a group are about; rivals at our rate until the best one is known."""
    found = {}
    for rival in (MD, FL):
        rate = best_rate(results, group, {rate: _label(rival, rate) for rate in setting.rates})
        rate = setting.rates[0] if rate is None else rate
        found[rival] = _label(rival, rate, setting.goes_still(results, group, rival, rate))
    return Names(group=group, hub=HUB, local=LOCAL, adaptive=ADAPTIVE, md=found[MD], fl=found[FL], ours=OURS)


def _shown(setting: Setting, group: str, results: Results) -> list[str]:
    return results.labels(group)


CUT = (
    "FL-GAN ends at 31 MB, in one bit at 1 or 2; the adaptive layout at 61, or iid, where it sends no more "
    "in 5,750 rounds, at 4. Beyond a method's end the tables show its best FID ever, in square brackets. "
    "Rates of the rivals are swept on seed 0, with Adam's beta1 at 0.5, and 0 was tried at the best rate; "
    "ours are 0.001 and 0. Gossip GAN is judged by one worker's "
    "generator, for it has no other."
)


# Of studies that were not done again.
FORMER = "Made with the defaults before: beta1 0.5, and 0.5 as the step of signs through a hub."


def study(name: str, question: str, setting: Setting, cut: str = CUT) -> Study:
    def wanted(results: Results) -> Sequence[Wanted]:
        return setting.wanted(results)

    return Study(
        name=name,
        question=question,
        wanted=wanted,
        tables=lambda results: tables(setting, results),
        cut=cut,
    )


FASHION = Setting(common={"data": "fashion-mnist", "d_nodes": 8})
MNIST = Setting(common={"data": "mnist", "d_nodes": 8}, rates=(1e-3,), parts=False, still=((EVEN, FL),))
MNIST_CUT = "Rivals with the momentum that was best on Fashion-MNIST, and rates of 0.001."
CONVOLUTIONAL_CUT = (
    "One seed, 800 rounds, 16 channels, all rates 0.001 (benchmarks/studies/models.py), rivals with beta1 at "
    "0.5."
)
CONVOLUTIONAL = Setting(
    common={
        "data": "fashion-mnist",
        "d_nodes": 8,
        "model": "dcgan",
        "channels": 16,
        "d_learning_rate": 1e-3,
        "g_learning_rate": 1e-3,
    },
    groups=(SKEWED,),
    seeds=(0,),
    rounds=800,
    rates=(1e-3,),
    parts=False,
)
CIFAR_CUT = (
    "Reduced for a CPU: 4 nodes, the MLP, 1,000 rounds, one seed, learning rates not swept, rivals with "
    "beta1 at 0.5."
)
CIFAR = Setting(
    common={"data": "cifar10", "d_nodes": 4},
    groups=("classes:5",),
    seeds=(0,),
    rounds=1000,
    rates=(1e-3,),
    parts=False,
)
