"""How many rounds recipes need to the same target, as a share of those of uncompressed messages each round.

Measured by `python benchmarks/studies/rounds.py` on digits, four D-Nodes with three classes each, through
the hub, to coarse targets, with beta1 at 0.5 and signs' step at 0.5, the defaults then; the figures are in
benchmarks/results/rounds.json. Other data and networks will differ, and a tenth is noise: recipes that send
more and need hardly fewer rounds are never chosen.
"""

from __future__ import annotations

from dance.gan.recipes import Recipe

ROUNDS: dict[Recipe, float] = {
    Recipe(gossip="none", period=1, image="none", feedback="none"): 1.0,
    Recipe(gossip="none", period=1, image="int8", feedback="sign:block=image"): 1.35,
    Recipe(gossip="int8", period=1, image="int8", feedback="sign:block=image"): 1.15,
    Recipe(gossip="int8", period=3, image="int8", feedback="sign:block=image"): 1.77,
    Recipe(gossip="int8", period=10, image="int8", feedback="sign:block=image"): 2.0,
    Recipe(gossip="sign", period=1, image="int8", feedback="sign:block=image"): 1.14,
    Recipe(gossip="sign", period=1, image="int4", feedback="sign:block=image"): 1.26,
    Recipe(gossip="sign", period=3, image="int4", feedback="sign:block=image"): 1.77,
    Recipe(gossip="sign", period=10, image="int4", feedback="sign:block=image"): 1.76,
    Recipe(gossip="sign", period=30, image="int4", feedback="sign:block=image"): 1.96,
}
