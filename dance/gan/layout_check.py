"""Which settings of AC-GAN go together: layout, what is averaged, graph, weights of feedback, recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dance.gan.settings import NEED_ODDS

if TYPE_CHECKING:
    from dance.gan.config import RunConfig


def check_layout(config: RunConfig) -> None:
    """Raises ValueError, naming value and remedy, for settings that contradict or silence each other."""
    settings = config.acgan
    if config.layout == "data-parallel" and config.g_nodes > 1:
        raise ValueError(
            f"g_nodes: data parallel workers have generators of their own, got {config.g_nodes}; "
            "use --g-nodes 1 or --layout model-parallel"
        )
    if settings.attachment == "partition" and config.d_nodes < config.g_nodes:
        raise ValueError(
            f"acgan.attachment: partition leaves G-Nodes without a D-Node, {config.g_nodes} G-Nodes and "
            f"{config.d_nodes} D-Nodes; use more --d-nodes or attachment all"
        )
    if config.layout == "adaptive" and settings.g_sync != "delta":
        raise ValueError(
            f"acgan.g_sync: the adaptive layout exchanges delta, got {settings.g_sync}; "
            "use --layout data-parallel"
        )
    if config.layout == "data-parallel" and settings.g_sync == "delta" and config.aggregation != "parameters":
        raise ValueError(
            "acgan.aggregation: g_sync delta exchanges discriminators too, so their gradients are not "
            "averaged; use g_sync gradient or exact"
        )
    if settings.feedback_weights in NEED_ODDS and config.loss not in ("non-saturating", "minimax"):
        raise ValueError(
            f"acgan.feedback_weights: {settings.feedback_weights} reads logits as odds, which those of "
            f"{config.loss} are not; use --loss non-saturating, or weights f2u or gman"
        )
    if settings.feedback_weights == "ua" and not config.r1:
        raise ValueError(
            "acgan.feedback_weights: ua without R1 collapses to one mode; use --r1 0.5 or other weights"
        )
    _check_unused(config)


def _check_unused(config: RunConfig) -> None:
    """Refuses settings of messages that the run does not send."""
    settings = config.acgan
    if config.aggregation != "parameters":
        gossip: dict[str, tuple[object, object]] = {
            "topology": (config.topology, "hub"),
            "gossip_codec": (config.gossip_codec, None),
            "acgan.period": (settings.period, 1),
            "acgan.order": (settings.order, "fresh"),
        }
        if settings.g_sync != "choco":
            gossip["acgan.step_size"] = (settings.step_size, None)
        for name, (value, default) in gossip.items():
            if value != default:
                raise ValueError(
                    f"{name}: {value} is for discriminators that gossip, but here they average gradients at "
                    f"the hub ({config.aggregation}); add --acgan.aggregation parameters, or drop it"
                )
    if config.layout == "data-parallel":
        images: dict[str, tuple[object, object]] = {
            "acgan.order": (settings.order, "fresh"),
            "acgan.fake_batch_size": (settings.fake_batch_size, None),
            "acgan.feedback_weights": (settings.feedback_weights, "mean"),
        }
        for name, (value, default) in images.items():
            if value != default:
                raise ValueError(
                    f"{name}: {value} is for images that travel, and data parallel workers send none; use "
                    "--layout model-parallel, or drop it"
                )


def check_recipes(config: RunConfig) -> None:
    """Raises ValueError, naming value and remedy, for settings that recipes leave without effect, and a table
    that nobody would follow.
    """
    if config.follows_recipes:
        if config.acgan.period != 1:
            remedy = "" if config.table else ", or give --round-ms, the time that a round's messages may take"
            raise ValueError(
                f"acgan.period: {config.acgan.period}, but where gossip is auto its period is chosen too; "
                f"drop it{remedy}"
            )
        if config.table is not None and config.round_ms is not None and config.layout == "model-parallel":
            raise ValueError(
                f"round_ms: {config.round_ms} has no effect beside a table, which has the codecs; drop one"
            )
        return
    if config.table is None:
        return
    through_hub = config.algorithm == "ac-gan" and config.topology == "hub"
    if not through_hub or config.layout == "data-parallel" or config.aggregation != "parameters":
        raise ValueError(
            "table: recipes are for ac-gan's gossip through the hub, model parallel or adaptive; "
            "drop --table, or use --topology hub and --acgan.aggregation parameters"
        )
    raise ValueError(
        f"table: {config.table} chooses codecs, but --gossip-codec is "
        f"{config.codec or config.gossip_codec or 'sign'}; use --gossip-codec auto, or drop --table"
    )
