"""Trains a small network on the digits of scikit-learn with DiLoCo: one compressed message in --every steps.

    torchrun --standalone --nproc-per-node 2 examples/local_sgd_mlp.py --codec int8 --every 10

Each rank trains alone with an optimizer of its own, then all go on from the outer step that the mean of what
they have learned makes (Douillard et al. 2023). --every 1 with --averaging is data-parallel training by hand.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from dance.local_sgd import LocalSGD, OuterSGD, averaging

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--codec", default="int8")
parser.add_argument("--every", type=int, default=10, help="steps between two outer ones")
parser.add_argument("--averaging", action="store_true", help="go on from the mean of the parameters itself")
parser.add_argument("--steps", type=int, default=120)
options = parser.parse_args()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(rank)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
outer = averaging if options.averaging else OuterSGD
local = LocalSGD(model, every=options.every, codec=options.codec, outer_optimizer=outer)  # rank 0's start

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:-300][rank::world], order[-300:]  # data that no other rank has
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(options.steps):
    batch = train[torch.randint(len(train), (32,))]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if local.step() and rank == 0:  # every rank calls it in every step
        print(f"step {step + 1:3d}  loss {loss.item():.4f}")
local.sync()  # what the last steps have learned

accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
if rank == 0:
    sent, raw = local.bytes_sent / 1e6, local.raw_bytes / 1e6 * options.every  # a message in every step
    print(f"accuracy {accuracy:.3f}  sent {sent:.2f} MB instead of {raw:.2f} MB ({raw / sent:.1f}x less)")
dist.destroy_process_group()
