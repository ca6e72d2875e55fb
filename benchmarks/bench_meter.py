"""How soon and how surely LinkMeter sees that a simulated link has changed, and what it costs.

    python -m benchmarks.bench_meter [--seeds 40]

Deliveries with lognormal noise over a link that steps 100 -> 10 -> 100 Mbit/s every 30 deliveries (delay: how
many deliveries until the change is declared), and over a steady one of 50 Mbit/s (false alarms in 250
deliveries: with noise alone, with 5 % of deliveries stalled by 0.3 s on average, and with a token bucket that
lets 64 KB through at once). The error of the rate is the root mean square of its logarithm, 3 and 24
deliveries after the start. An observation that takes more than 100 us makes the command fail.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np

from dance.bandwidth import LinkMeter

SIZES = {
    "1 MB": (1_000_000,),
    "40 KB, 1 MB": (40_000, 1_000_000),
    "130 KB to 4 MB": (130_000, 500_000, 1_000_000, 4_000_000),
}
LATENCY_S = 0.002
MOST_US = 100.0  # an observation: far below what the fastest send takes
Deliveries = list[tuple[int, float]]


def deliveries(
    mbps: Sequence[float],
    noise: float,
    random: np.random.Generator,
    sizes: Sequence[int],
    *,
    stalls: float = 0.0,
    burst: int = 0,
) -> Deliveries:
    """One delivery (bytes, seconds) at each rate."""
    made = []
    for rate in mbps:
        num_bytes = int(random.choice(sizes))
        seconds = LATENCY_S + max(num_bytes - burst, 0.01 * num_bytes) * 8e-6 / rate
        stall = random.exponential(0.3) if random.random() < stalls else 0.0
        made.append((num_bytes, seconds * math.exp(random.normal(0.0, noise)) + stall))
    return made


def changes(made: Deliveries) -> list[int]:
    """The deliveries, counted from 0, at which a change was declared."""
    meter, found = LinkMeter(), []
    for k, (num_bytes, seconds) in enumerate(made):
        before = meter.num_changes
        meter.observe(num_bytes, seconds)
        if meter.num_changes > before:
            found.append(k)
    return found


def delays(noise: float, sizes: Sequence[int], seeds: int) -> list[int]:
    """Deliveries until each step was declared; 30 where it was not before the next one."""
    seen = []
    for seed in range(seeds):
        mbps = [100.0] * 30 + [10.0] * 30 + [100.0] * 30
        found = changes(deliveries(mbps, noise, np.random.default_rng(seed), sizes))
        seen += [min([k + 1 - step for k in found if step <= k < step + 30], default=30) for step in (30, 60)]
    return seen


def false_alarms(
    noise: float, sizes: Sequence[int], seeds: int, *, stalls: float = 0.0, burst: int = 0
) -> float:
    """Changes declared in 250 deliveries over a steady link."""
    total = 0
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        total += len(changes(deliveries([50.0] * 500, noise, random, sizes, stalls=stalls, burst=burst)))
    return 250.0 * total / (500 * seeds)


def rate_errors(noise: float, sizes: Sequence[int], seeds: int) -> list[float]:
    logs = []
    for seed in range(seeds):
        meter = LinkMeter()
        made = deliveries([50.0] * 24, noise, np.random.default_rng(seed), sizes)
        for k, (num_bytes, seconds) in enumerate(made):
            meter.observe(num_bytes, seconds)
            if k in (2, 23):
                logs.append(math.log((meter.rate_mbps or math.nan) / 50.0))
    return [float(error) for error in np.sqrt(np.mean(np.square(np.reshape(logs, (-1, 2))), axis=0))]


def costs_us(sizes: Sequence[int]) -> tuple[float, float]:
    """Microseconds of `observe`, and of `observe` with `estimate`: the best of 40 batches of 24."""
    made = deliveries([50.0] * 960, 0.1, np.random.default_rng(0), sizes)
    best = []
    for estimated in (False, True):
        meter, times = LinkMeter(), []
        for k in range(0, len(made), 24):
            start = time.perf_counter()
            for num_bytes, seconds in made[k : k + 24]:
                meter.observe(num_bytes, seconds)
                if estimated:
                    meter.estimate()
            times.append((time.perf_counter() - start) / 24e-6)
        best.append(min(times))
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40, help="simulated links for each figure")
    seeds = parser.parse_args().seeds
    print(
        f"{'sizes':<16}{'noise':>6}{'delay: 2':>10}{'3':>5}{'more':>6}"
        f"{'alarms':>9}{'stalls':>9}{'burst':>8}{'error 3':>9}{'24':>7}"
    )
    for name, sizes in SIZES.items():
        for noise in (0.05, 0.1, 0.2):
            seen = np.array(delays(noise, sizes, seeds))
            shares = [float(np.mean(seen <= 2)), float(np.mean(seen == 3)), float(np.mean(seen > 3))]
            alarms = [
                false_alarms(noise, sizes, seeds, stalls=stalls, burst=burst)
                for stalls, burst in ((0.0, 0), (0.05, 0), (0.0, 64_000))
            ]
            few, many = rate_errors(noise, sizes, seeds)
            print(
                f"{name:<16}{noise:>6.0%}{shares[0]:>10.0%}{shares[1]:>5.0%}{shares[2]:>6.0%}"
                f"{alarms[0]:>9.3f}{alarms[1]:>9.3f}{alarms[2]:>8.3f}{few:>9.1%}{many:>7.1%}"
            )
    slowest = 0.0
    for name, sizes in SIZES.items():
        observe, both = costs_us(sizes)
        print(f"{name:<16}observe {observe:.0f} us, observe and estimate {both:.0f} us")
        slowest = max(slowest, observe)
    if slowest > MOST_US:
        raise SystemExit(f"an observation took {slowest:.0f} us, more than {MOST_US:.0f}")


if __name__ == "__main__":
    main()
