"""Trains a small network on the digits of scikit-learn, sharded by FSDP2, with compressed collectives.

    torchrun --standalone --nproc-per-node 2 examples/fsdp_mlp.py --codec int8 --gather-codec int8

--codec is that of the gradients, with error feedback, --gather-codec that of the weights which forward and
backward see; the shards that the optimizer updates stay exact. Needs torch 2.9 or newer.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import dance

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--codec", default="auto")
parser.add_argument("--gather-codec", help="not given: weights are gathered uncompressed")
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same start at all ranks
model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
mesh = init_device_mesh("cpu", (world,))
for module in (model[0], model[2], model):
    fully_shard(module, mesh=mesh)
compression = dance.fsdp.attach(model, options.codec, gather_codec=options.gather_codec)  # the one line

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
train, test = torch.randperm(len(labels)).split([1500, len(labels) - 1500])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
generator = torch.Generator().manual_seed(rank)
for step in range(options.steps):
    batch = train[torch.randint(len(train), (64 // world,), generator=generator)]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if rank == 0 and (step + 1) % 20 == 0:
        print(f"step {step + 1:3d}  loss {loss.item():.4f}")
right = model(images[test]).argmax(1) == labels[test]  # all ranks call it, for it gathers the weights
if rank == 0:
    sent, raw = (sum(each.values()) / 1e6 for each in (compression.bytes_sent, compression.raw_bytes))
    print(f"accuracy {right.float().mean().item():.3f}", end="  ")
    print(f"sent {sent:.1f} MB instead of {raw:.1f} MB ({raw / sent:.1f}x less)")
dist.destroy_process_group()
