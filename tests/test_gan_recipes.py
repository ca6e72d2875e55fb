"""The table of recipes, what `dance calibrate gan` computes for it, and the controller that looks it up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_gan import BASE, parts

from dance import calibrate_gan, cli
from dance.bandwidth import Link, Links, Trace
from dance.calibrate_gan import CalibrateGanConfig, Fixed, Load, played_s
from dance.codec_speed import Speed
from dance.exchange import SimulatedExchange
from dance.gan import AcganConfig
from dance.gan.acgan import ModelParallel
from dance.gan.config import RunConfig, validate
from dance.gan.controller import DWELL
from dance.gan.recipes import Recipe, RecipeTable, read_recipes
from dance.gan.rounds import ROUNDS

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = Recipe(gossip="none", period=1, image="none", feedback="none")
COARSE = Recipe(gossip="sign", period=3, image="int8", feedback="sign:block=image")


def table(seconds: object = None) -> RecipeTable:
    """At 1 Mbit/s the coarse recipe is best, at 100 Mbit/s the plain one."""
    given = [[[100.0, 1.0]] * 2, [[1.0, 2.0]] * 2] if seconds is None else seconds
    return RecipeTable(
        mbps=(1.0, 100.0), deviations=(0.0, 1.0), recipes=(PLAIN, COARSE), seconds=np.array(given)
    )


# ---- the table ---------------------------------------------------------------------------------------------


def test_a_table_is_linear_in_logarithms_between_its_rates_and_flat_beyond() -> None:
    found = table()
    np.testing.assert_allclose(found.at(10.0, 0.0), [10.0, np.sqrt(2.0)])
    np.testing.assert_allclose(found.at(0.01, 0.5), [100.0, 1.0])
    np.testing.assert_allclose(found.at(1e6, 9.0), [1.0, 2.0])
    varied = table([[[1.0, 1.0], [4.0, 1.0]]] * 2)
    np.testing.assert_allclose(varied.at(3.0, 0.5), [2.0, 1.0])


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(table().to_json())
    found = read_recipes(path)
    assert found.to_json() == table().to_json()
    assert found.recipes == (PLAIN, COARSE)
    assert found.digest == table().digest != table([[[100.0, 1.0]] * 2, [[1.0, 3.0]] * 2]).digest
    assert found.digest < 1 << 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "song"}, "format"),
        ({"colour": 1}, "colour"),
        ({"mbps": [2.0, 1.0]}, "rising mbps"),
        ({"seconds": [[[1.0]]]}, "shape"),
        ({"seconds": [[[100.0, -1.0]] * 2, [[1.0, 2.0]] * 2]}, "positive seconds"),
        ({"recipes": [{"gossip": "zip", "image": "none", "feedback": "none", "period": 1}] * 2}, "zip"),
        ({"recipes": [{"gossip": "none", "image": "none", "feedback": "none", "period": 0}] * 2}, "period"),
        ({"recipes": [{"gossip": "none"}]}, "missing"),
    ],
)
def test_a_damaged_table_says_what_is_wrong_and_how_to_make_one(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(json.loads(table().to_json()) | change))
    with pytest.raises(ValueError, match=rf"{words}.*dance calibrate gan"):
        read_recipes(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipes(tmp_path / "none.json")


# ---- what is computed --------------------------------------------------------------------------------------


def test_a_round_takes_its_computing_its_codecs_its_bytes_and_its_latencies() -> None:
    loads = {
        "image": Load(num_bytes=1000, code_s=0.01),
        "feedback": Load(num_bytes=500, code_s=0.02),
        "gossip": Load(num_bytes=4000, code_s=0.04),
    }
    steady = Trace(times_s=np.zeros(1), mbps=np.array([8.0]))  # a megabyte a second
    found = played_s(3, loads, Fixed(compute_s=0.1, latency_s=0.005, d_nodes=2), steady)
    once = 0.1 + 2 * (1000 + 500) / 1e6 + 2 * 0.005 + 0.01 + 0.02
    gossip = 2 * (2 * 4000 / 1e6 + 0.005 + 0.04)
    assert found == pytest.approx(once + gossip / 3, rel=1e-9)
    # A hub that is faster than each of its two D-Nodes, but not than both: 1.6 times the bytes of one.
    found = played_s(3, loads, Fixed(compute_s=0.1, latency_s=0.005, d_nodes=2, hub_mbps=10.0), steady)
    saved = 0.4 * ((1000 + 500) / 1e6 + 2 * 4000 / 1e6 / 3)
    assert found == pytest.approx(once + gossip / 3 - saved, rel=1e-9)
    fast = played_s(3, loads, Fixed(compute_s=0.1, latency_s=0.005, d_nodes=2, hub_mbps=1e3), steady)
    assert fast == pytest.approx(found - 0.6 * ((1000 + 500) / 1e6 + 2 * 4000 / 1e6 / 3), rel=1e-9)


def test_slow_links_want_coarser_and_rarer_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_gan, "measure_speed", lambda *_, **__: Speed(encode_s=1e-9, decode_s=1e-9))
    monkeypatch.setattr(calibrate_gan, "ROUNDS", {PLAIN: 1.0, COARSE: 2.0})
    run = RunConfig(layout="model-parallel", d_nodes=4)
    config = CalibrateGanConfig(mbps=(1.0, 1e6), deviation=(0.0, 0.5), compute_ms=10.0, run=run)
    found = calibrate_gan.calibrate_gan(config)
    assert found.seconds.argmin(2).tolist() == [[1, 1], [0, 0]]
    assert (np.diff(found.seconds, axis=0) < 0).all()
    assert (np.diff(found.seconds, axis=1) >= 0).all()
    again = calibrate_gan.calibrate_gan(config)
    np.testing.assert_array_equal(again.seconds, found.seconds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mbps": (0.0,)}, "--mbps"),
        ({"deviation": (4.0,)}, "--deviation"),
        ({"latency_ms": -1.0}, "--latency-ms"),
        ({"hub_mbps": 0.0}, "--hub-mbps"),
        ({"compute_ms": -1.0}, "--compute-ms"),
    ],
)
def test_refusals(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        calibrate_gan.calibrate_gan(CalibrateGanConfig(**change))  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gan.json"
    arguments = ["calibrate", "gan", "--d-nodes", "2", "--mbps", "1", "1000", "--deviation", "0"]
    assert cli.main([*arguments, "--compute-ms", "5", "--to", str(path)]) == 0
    assert "dance train --layout model-parallel --codec auto --table" in capsys.readouterr().out
    assert read_recipes(path).recipes == tuple(ROUNDS)
    assert read_recipes(path).about["d_nodes"] == 2


def test_the_committed_rounds_are_those_of_the_study() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "rounds.json"
    rows = json.loads(results.read_text())["rows"]
    measured = {
        Recipe(
            gossip=row["gossip"], period=row["period"], image=row["image"], feedback=row["feedback"]
        ): round(row["mean"] / rows[0]["mean"], 2)
        for row in rows
        if row["mean"] is not None
    }
    assert measured == ROUNDS


# ---- the controller ----------------------------------------------------------------------------------------

TINY = replace(BASE, d_nodes=2, codec="auto", simulate=True)


def nodes_over(links: Links, path: Path, config: RunConfig = TINY) -> ModelParallel:
    path.write_text(table().to_json())
    config = replace(config, table=str(path))
    validate(config)
    return ModelParallel(config, SimulatedExchange(config.num_nodes, links), parts(config))


def test_all_nodes_follow_the_recipe_of_the_slowest_link(tmp_path: Path) -> None:
    fast, slow = Link(rate_mbps=1000.0), Link(rate_mbps=1000.0, down_mbps=0.5)
    for links, recipe in ((Links(default=fast), PLAIN), (Links(default=fast, nodes={2: slow}), COARSE)):
        nodes = nodes_over(links, tmp_path / "table.json")
        assert nodes.controller is not None
        assert nodes.controller.recipe == COARSE, "the first is that of the slowest link of the table"
        for r in range(3 * DWELL):
            nodes.round(r)
        assert nodes.controller.recipe == recipe
        assert nodes.team.gossip is not None
        assert nodes.team.gossip.period == recipe.period
        kinds = {kind: text for node in range(3) for kind, text in nodes.codecs(node).items()}
        assert {kind: text.partition(":")[0] for kind, text in kinds.items()} == {
            **{kind: getattr(recipe, kind).partition(":")[0] for kind in ("gossip", "image", "feedback")},
            "period": str(recipe.period),
        }
        assert len({gossip.step_size for gossip in nodes.team.gossip.nodes.values()}) == 1
        # Two turns so far: a report up and a number down for each of two D-Nodes.
        assert nodes.exchange.counts.of(kind="link").sent_bytes == 2 * 2 * 96
        assert nodes.exchange.counts.of(kind="recipe").sent_bytes == 2 * 2 * 72


def test_a_link_that_changes_is_followed(tmp_path: Path) -> None:
    steps = Trace(times_s=np.array([0.0, 20.0, 1e6]), mbps=np.array([1000.0, 0.02, 0.02]))
    nodes = nodes_over(Links(default=Link(trace=steps)), tmp_path / "table.json")
    assert nodes.controller is not None
    recipes = []
    for r in range(200):
        nodes.exchange.compute(0, 0.2)
        nodes.round(r)
        recipes.append(nodes.controller.recipe)
    changes = [r for r in range(1, 200) if recipes[r] != recipes[r - 1]]
    assert [recipes[r] for r in changes] == [PLAIN, COARSE]
    assert all(r % DWELL == 0 for r in changes)


def test_a_controller_goes_on_where_it_was_and_refuses_another_table(tmp_path: Path) -> None:
    nodes = nodes_over(Links(default=Link(rate_mbps=1000.0)), tmp_path / "table.json")
    for r in range(2 * DWELL):
        nodes.round(r)
    again = nodes_over(Links(default=Link(rate_mbps=1000.0)), tmp_path / "table.json")
    for node in range(3):
        again.restore(node, *nodes.state(node))
    assert again.controller is not None
    assert again.controller.recipe == PLAIN
    assert again.team.gossip is not None
    assert again.team.gossip.period == 1
    tensors, meta = nodes.state(0)
    meta = meta | {"controller": {"recipe": 0, "digest": 1}}
    with pytest.raises(ValueError, match="--table"):
        again.restore(0, tensors, meta)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"topology": "ring"}, "hub"),
        ({"algorithm": "md-gan"}, "ac-gan"),
        ({"codec": "sign"}, "--gossip-codec is sign.*--gossip-codec auto"),
        ({"round_ms": 50.0}, "round_ms: 50.0 has no effect"),
        ({"acgan": AcganConfig(period=3)}, "acgan.period: 3, .*chosen too; drop it$"),
    ],
)
def test_a_table_that_nobody_would_follow_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate(replace(TINY, table="t.json", **change))  # type: ignore[arg-type]
