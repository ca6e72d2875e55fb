"""ChocoGossip over real gloo processes: exact averaging, resuming, bytes, and what is refused."""

from __future__ import annotations

from typing import Any

import torch
from processes import run_ranks

import dance
from dance import topology


def _model(rank: int) -> torch.nn.Module:
    torch.manual_seed(rank)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))


def _choco(rank: int) -> dict[str, Any]:
    import torch.distributed as dist

    from dance import ChocoGossip

    model = _model(rank)
    reduced = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for tensor in reduced.values():
        dist.all_reduce(tensor)
        tensor /= 4
    complete = ChocoGossip(model.named_parameters(), topology.complete(4), "none", 1.0)
    complete.step()
    gap = max(float((p - reduced[n]).abs().max()) for n, p in model.named_parameters())

    # Equal starts are found and used; a resumed run has the bits of the other.
    one, two = _model(0), _model(0)
    whole = ChocoGossip(one.named_parameters(), topology.ring(4), "sign")
    equal_start = any(
        float(value.abs().max()) > 0 for key, value in whole.state_dict().items() if key.startswith("sent")
    )

    def update(module: torch.nn.Module, number: int) -> None:
        generator = torch.Generator().manual_seed(100 * number + rank)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)

    for number in range(10):
        update(one, number)
        whole.step()
    state = whole.state_dict()
    two.load_state_dict(one.state_dict())
    again = ChocoGossip(dict(two.named_parameters()), topology.ring(4), "int8")
    again.load_state_dict(state)
    for number in range(10, 20):
        for module, chosen in ((one, whole), (two, again)):
            update(module, number)
            chosen.step()
    bits = all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    num_bytes = whole.exchange.counts.of(rank, "gossip").sent_bytes
    whole.codec = "topk:ratio=0.1"
    whole.step()

    errors = []
    refused: list[tuple[Any, ...]] = [
        (one.named_parameters(), topology.ring(3), "sign"),
        (one.named_parameters(), topology.one_peer_exponential(4, directed=True), "sign"),
        ([], topology.ring(4), "sign"),
        ({"a": torch.zeros(3, dtype=torch.float64)}, topology.ring(4), "sign"),
        (one.named_parameters(), topology.ring(4), "zip"),
    ]
    for arguments in refused:
        try:
            ChocoGossip(*arguments)
        except ValueError as error:  # noqa: PERF203
            errors.append(str(error))
    return {
        "gap": gap,
        "equal_start": equal_start,
        "keys": sorted(key for key in state if key.startswith(f"sent.{rank}")),
        "bits": bits,
        "rounds": (whole.round, again.round),
        "bytes": num_bytes,
        "errors": errors,
    }


def test_choco_gossip_over_a_process_group() -> None:
    results = run_ranks(_choco, 4)
    for rank, result in enumerate(results):
        assert result["gap"] <= 1e-6, "complete graph, none, step 1: the mean of an all-reduce"
        assert result["equal_start"]
        assert result["bits"], "20 steps and 10 steps, resumed, 10 more"
        assert result["rounds"] == (21, 20)
        numel = 20 * 30 + 30 + 30 * 5 + 5
        assert result["bytes"] == 20 * 2 * dance.codec("sign").packet_nbytes(numel)
        names = ("0.bias", "0.weight", "1.bias", "1.weight")
        assert result["keys"] == [f"sent.{rank}/{name}" for name in names]
        assert result["errors"][0].startswith("gossip: ring of 3 needs as many ranks, the group has 4")
        assert "directed" in result["errors"][1]
        assert "at least one parameter" in result["errors"][2]
        assert "got torch.float64 on cpu for 'a'; cast first" in result["errors"][3]
        assert "unknown codec 'zip'" in result["errors"][4]
