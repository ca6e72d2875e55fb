"""How many rounds recipes need to the same target, as a share of those of uncompressed messages each round.

Measured by `python benchmarks/studies/rounds.py` on digits, four D-Nodes with three classes each, through
the hub; the figures are in benchmarks/results/rounds.json. Other data and networks will differ.
"""

from __future__ import annotations

from dance.gan.recipes import Recipe

ROUNDS: dict[Recipe, float] = {
    Recipe(gossip="none", period=1, image="none", feedback="none"): 1.0,
    Recipe(gossip="none", period=1, image="int8", feedback="sign:block=image"): 0.84,
    Recipe(gossip="none", period=10, image="int8", feedback="sign:block=image"): 1.88,
    Recipe(gossip="int8", period=1, image="int8", feedback="sign:block=image"): 1.01,
    Recipe(gossip="int8", period=3, image="int8", feedback="sign:block=image"): 1.83,
    Recipe(gossip="int8", period=10, image="int8", feedback="sign:block=image"): 2.03,
    Recipe(gossip="sign", period=1, image="int8", feedback="sign:block=image"): 1.75,
    Recipe(gossip="sign", period=3, image="int8", feedback="sign:block=image"): 1.92,
    Recipe(gossip="sign", period=10, image="int8", feedback="sign:block=image"): 1.64,
    Recipe(gossip="sign", period=30, image="int8", feedback="sign:block=image"): 2.04,
}
