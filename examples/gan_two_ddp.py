"""A GAN with two DistributedDataParallel modules, each with a state of its own, and no unused parameters.

    torchrun --standalone --nproc-per-node 2 examples/gan_two_ddp.py --codec int8

A module is called through DDP only where its own gradients are wanted: DDP then finds every parameter used in
every backward pass, with no find_unused_parameters, and no gradient is sent (or owed) that nobody applies.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dance

parser = argparse.ArgumentParser()
parser.add_argument("--codec", default="auto")
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 64), nn.Sigmoid())
discriminator = nn.Sequential(nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))
g_ddp, d_ddp = DistributedDataParallel(generator), DistributedDataParallel(discriminator)
states = [dance.ddp.attach(ddp, codec=options.codec) for ddp in (g_ddp, d_ddp)]  # one each
g_adam = torch.optim.Adam(g_ddp.parameters(), lr=1e-3, betas=(0.5, 0.99))
d_adam = torch.optim.Adam(d_ddp.parameters(), lr=1e-3, betas=(0.5, 0.99))

images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
torch.manual_seed(rank + 1)
ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
for step in range(options.steps):
    real = images[torch.randint(len(images), (64,))]
    with torch.no_grad():  # the plain generator: the discriminator's step owes it nothing
        fake = generator(torch.randn(64, 32))
    d_adam.zero_grad()
    verdicts = d_ddp(torch.cat([real, fake]))  # one pass through DDP, then one backward
    d_loss = cross_entropy(verdicts, torch.cat([ones, zeros]))
    d_loss.backward()
    d_adam.step()

    g_adam.zero_grad()
    discriminator.requires_grad_(False)  # the plain discriminator: its gradients are not wanted here
    g_loss = cross_entropy(discriminator(g_ddp(torch.randn(64, 32))), ones)
    g_loss.backward()
    discriminator.requires_grad_(True)
    g_adam.step()
    if rank == 0 and (step + 1) % 20 == 0:
        print(f"step {step + 1:3d}  d_loss {d_loss.item():.3f}  g_loss {g_loss.item():.3f}")
if rank == 0:
    sent, raw = (sum(state.stats()[name] for state in states) / 1e6 for name in ("bytes_sent", "raw_bytes"))
    print(f"sent {sent:.2f} MB instead of {raw:.2f} MB ({raw / sent:.1f}x less)")
dist.destroy_process_group()
