"""Trains a small CNN on the digits of scikit-learn with DistributedDataParallel and compressed gradients.

    torchrun --standalone --nproc-per-node 2 examples/ddp_cnn.py --codec int8

Any codec of dance works, "auto" measures the link and chooses, "powersgd:rank=4" sends thin factors.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dance

parser = argparse.ArgumentParser()
parser.add_argument("--codec", default="auto")
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64 * 16, 256),
    nn.ReLU(),
    nn.Linear(256, 10),
)
ddp = DistributedDataParallel(model)
state = dance.ddp.attach(ddp, codec=options.codec)  # the one line

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train, test = torch.randperm(len(labels)).split([1500, len(labels) - 1500])
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
generator = torch.Generator().manual_seed(rank)
for step in range(options.steps):
    batch = train[torch.randint(len(train), (64 // world,), generator=generator)]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(ddp(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if rank == 0 and (step + 1) % 20 == 0:
        print(f"step {step + 1:3d}  loss {loss.item():.4f}")
if rank == 0:
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    sent, raw = (state.stats()[name] / 1e6 for name in ("bytes_sent", "raw_bytes"))
    print(f"accuracy {accuracy:.3f}  sent {sent:.1f} MB instead of {raw:.1f} MB ({raw / sent:.1f}x less)")
dist.destroy_process_group()
