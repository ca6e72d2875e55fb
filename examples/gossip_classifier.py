"""Gossip training of a classifier: each rank has digits that no other rank has, and no rank is a server.

    torchrun --standalone --nproc-per-node 3 examples/gossip_classifier.py --codec sign

After each local step a rank sends its two neighbours on a ring a packet (CHOCO, Koloskova et al. 2019).
Every rank knows all kinds of digits in the end, though it has seen some of them only: compare with --alone.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import dance

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--codec", default="sign")
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--alone", action="store_true", help="train without gossip")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:-400], order[-400:]
mine = train[labels[train] % world == rank]  # by class: the hard case

torch.manual_seed(0)  # the same start at all ranks
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
gossip = dance.ChocoGossip(model.named_parameters(), dance.topology.ring(world), options.codec)

torch.manual_seed(rank)  # and batches of its own
for _ in range(options.steps):
    batch = mine[torch.randint(len(mine), (64,))]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()
    if not options.alone:
        gossip.step()

accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
counts = gossip.exchange.counts
print(
    f"rank {rank}: accuracy {accuracy:.3f}, {counts.bytes_sent} bytes sent instead of {counts.raw_bytes}\n",
    end="",
)
dist.destroy_process_group()
