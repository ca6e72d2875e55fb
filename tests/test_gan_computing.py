"""Virtual clocks of simulated runs: compute times, stragglers, links by groups; no bit depends on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_gan import parts

from dance.bandwidth import parse_links
from dance.bandwidth.groups import of_nodes
from dance.bandwidth.units import BYTES_A_MEGABIT
from dance.exchange import SimulatedExchange
from dance.gan import RunConfig, run
from dance.gan.computing import ABSORB, FEEDBACK, GENERATE, UPDATE, parse_computing
from dance.gan.config import validate
from dance.gan.engine import build
from dance.gan.rows import Algorithm

CONFIG = RunConfig(
    layout="model-parallel", d_nodes=3, batch_size=4, latent=6, g_widths=(16,), d_widths=(24,), simulate=True
)


def trained(config: RunConfig, rounds: int = 6) -> tuple[Algorithm, SimulatedExchange]:
    count = config.num_nodes
    computing = parse_computing(config.compute, config.stragglers, count, config.seed)
    links = parse_links(config.links, count)
    exchange = SimulatedExchange(count, links, None if computing is None else computing.seconds)
    algorithm = build(config, exchange, parts(config, 12, (1, 8, 8)))
    for round_index in range(rounds):
        exchange.round = round_index
        algorithm.round(round_index)
    return algorithm, exchange


def test_clauses_name_groups_of_nodes(tmp_path: Path) -> None:
    text = "a; 0: b; 1,3-4 : c=1; 4- : d{node}"
    expected = {0: "b", 1: "c=1", 2: "a", 3: "c=1", 4: "d4", 5: "d5"}
    assert of_nodes(text, 6, str) == expected
    assert of_nodes("2: markov:20,2@10s", 4, str) == {2: "markov:20,2@10s"}
    file = tmp_path / "nodes.txt"
    file.write_text("a   # everybody\n\n0: b\n1,3-4: c=1\n4-: d{node}\n")
    assert of_nodes(f"@{file}", 6, str) == expected
    made = of_nodes("x; 1: y", 3, lambda value: [value])
    assert made[0] is made[2]
    for bad, match in (("6: a", "nodes 0 to 5"), ("4-2: a", "nodes 0 to 5"), (" ; ", "no value")):
        with pytest.raises(ValueError, match=match):
            of_nodes(bad, 6, str)
    with pytest.raises(ValueError, match="cannot be read"):
        of_nodes("@no-such-file", 6, str)


def test_links_of_groups() -> None:
    links = parse_links("10mbit,5ms; 0: 1gbit; 2-: cellular:20,seed={node}", 4)
    assert [links.of(node).rate_mbps for node in (0, 1)] == [1000.0, 10.0]
    assert [links.of(node).delay_s for node in (0, 1)] == [0.0, 0.005]
    assert links.of(2).trace is not None
    assert links.of(2).received_s(0.0, 10**7) != links.of(3).received_s(0.0, 10**7)
    assert parse_links("1: 1mbit", 3).of(0).rate_mbps == float("inf")


def test_times_follow_their_distributions() -> None:
    """Means of n draws within 5 standard errors: of a lognormal factor of mean 1, sqrt((e^(s^2) - 1) / n)."""
    spread, count = 0.5, 4000
    bound = 5 * ((2.718281828 ** (spread * spread) - 1) / count) ** 0.5
    plain = parse_computing("20ms", None, 2, 0)
    assert plain is not None
    assert {plain.seconds(node, r) for node in (0, 1) for r in range(5)} == {0.02}
    over_nodes = parse_computing(f"20ms,spread={spread}", None, count, 0)
    over_rounds = parse_computing(f"20ms,jitter={spread}", None, 1, 0)
    assert over_nodes is not None
    assert over_rounds is not None
    for times in (
        [over_nodes.seconds(node, 3) for node in range(count)],
        [over_rounds.seconds(0, r) for r in range(count)],
    ):
        assert sum(times) / count == pytest.approx(0.02, rel=bound)
        assert len(set(times)) == count
    assert over_nodes.seconds(7, 1) == over_nodes.seconds(7, 2)
    slow = parse_computing("1s", "0.1x5; 0: 0x1", 2, 0)
    assert slow is not None
    found = [slow.seconds(1, r) for r in range(count)]
    assert set(found) == {1.0, 5.0}
    assert found.count(5.0) / count == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / count) ** 0.5)
    assert {slow.seconds(0, r) for r in range(200)} == {1.0}
    other = parse_computing("1s", "0.1x5", 2, 1)
    assert other is not None
    assert [other.seconds(1, r) for r in range(count)] != found


@pytest.mark.parametrize(
    ("compute", "stragglers"),
    [
        ("fast", None),
        ("20ms,width=1", None),
        ("20ms,spread", None),
        ("20ms,spread=-1", None),
        ("20ms", "2x5"),
        ("20ms", "0.1x0.5"),
        ("20ms", "often"),
        ("9: 20ms", None),
        (None, "0.1x5"),
    ],
)
def test_bad_times_are_refused(compute: str | None, stragglers: str | None) -> None:
    with pytest.raises(ValueError, match=r"compute|stragglers|nodes"):
        parse_computing(compute, stragglers, 4, 0)


@pytest.mark.parametrize("field", ["compute", "links", "stack"])
def test_a_run_of_real_nodes_takes_none_of_it(field: str) -> None:
    value = {"compute": "20ms", "links": "10mbit", "stack": "auto"}[field]
    validate(replace(CONFIG, **{field: value}))
    with pytest.raises(ValueError, match=rf"{field}: .*--simulate"):
        validate(replace(CONFIG, simulate=False, **{field: value}))


@pytest.mark.parametrize("algorithm", ["ac-gan", "md-gan", "fl-gan"])
def test_links_and_times_change_clocks_and_no_bits(algorithm: str) -> None:
    config = replace(CONFIG, algorithm=algorithm)  # type: ignore[arg-type]
    slow = replace(
        config,
        links="1mbit/5mbit,20ms; 0: 50mbit; 2: markov:2,0.5@1s,seed={node}",
        compute="20ms,spread=0.5,jitter=0.2; 0: 5ms",
        stragglers="0.3x4",
    )
    plain, _ = trained(config)
    (first, one), (second, two) = trained(slow), trained(slow)
    for node in range(config.num_nodes):
        for name, tensor in plain.state(node)[0].items():
            assert torch.equal(first.state(node)[0][name], tensor)
            assert torch.equal(second.state(node)[0][name], tensor)
    clocks = [one.elapsed_s(node) for node in range(config.num_nodes)]
    assert clocks == [two.elapsed_s(node) for node in range(config.num_nodes)]
    assert min(clocks) > 0.05
    other = trained(replace(slow, seed=1))[1]
    assert clocks != [other.elapsed_s(node) for node in range(config.num_nodes)]


def test_a_resumed_run_has_the_clock_of_an_uninterrupted_one(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    config = replace(
        CONFIG,
        links="1mbit,20ms; 0: walk:10,seed=3",
        compute="20ms,jitter=0.5",
        stragglers="0.5x3",
        evaluate_images=200,
        rounds=4,
    )
    whole = run(replace(config, out=str(tmp_path / "whole")))
    run(replace(config, out=str(tmp_path / "split"), rounds=2))
    split = run(RunConfig(resume=str(tmp_path / "split"), rounds=4))
    assert split.summary["virtual_s"] == whole.summary["virtual_s"]
    assert whole.summary["virtual_s"] == max(trained_like(config).elapsed_s(node) for node in range(4))


def trained_like(config: RunConfig) -> SimulatedExchange:
    """The clocks of a run on digits depend on sizes of messages alone, so that any 8 x 8 images give them."""
    return trained(config, rounds=config.rounds)[1]


def test_one_round_through_the_hub_takes_what_the_formula_says() -> None:
    """Round 0 of ac-gan on equal links of r Mbit/s and d s, computing c s at D-Nodes and g s at the G-Node.

    The G-Node's link is the narrow one: n messages go up or come down it, one after the other, in each of the
    four phases; a D-Node's own way overlaps with that, and each phase ends two delays after its last byte.
    D-Nodes begin when their images are there, and the relay's link is busy from the first one's packets on.
    """
    r, d, c, g, n = 2.0, 0.015, 0.2, 0.03, 3
    config = replace(CONFIG, links=f"{r}mbit,{d * 1e3:g}ms", compute=f"{c}s; 0: {g}s")
    algorithm, exchange = trained(config, rounds=1)
    per_byte = 1 / (r * BYTES_A_MEGABIT)
    counts = exchange.counts

    def one(node: int, kind: str) -> float:
        """Seconds of one message of its kind."""
        count = counts.of(node, kind)
        return count.sent_bytes / count.sent_messages * per_byte

    image, feedback = one(0, "image"), one(1, "feedback")
    up, down = one(1, "gossip") + one(1, "moment"), one(0, "gossip") + one(0, "moment")
    assert up > image  # so that the relay's link is busy from the first node's packets on
    first_ready = g * GENERATE + image + 2 * d + c * UPDATE
    up_done = first_ready + n * up + 2 * d
    down_done = up_done + n * down + 2 * d
    # The first node may answer after its packets of the relay, n - 1 pairs before the last one.
    fed = max(down_done + feedback, down_done - (n - 1) * down + n * feedback) + c * FEEDBACK + 2 * d
    assert exchange.elapsed_s(0) == pytest.approx(fed + g * ABSORB, rel=1e-9)
    assert algorithm.losses(1) is not None
