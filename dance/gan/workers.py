"""The D-Nodes of one process at work: one by one, or stacked; with what it takes on their clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dance.gan.computing import FEEDBACK, UPDATE
from dance.gan.config import RunConfig
from dance.gan.messages import Post
from dance.gan.nodes import DNode
from dance.gan.stacked import Stack

# What `--stack auto` stacks; convolutions, with weights of each node's own, were not tried.
_STACKED = ("mlp",)


class Workers:
    """Make it before anything takes hold of the nodes' parameters: a stack moves them to its own memory."""

    def __init__(self, config: RunConfig, post: Post, nodes: Mapping[int, DNode]) -> None:
        self.post = post
        self.nodes = dict(nodes)
        stacks = (config.discriminator or config.model) in _STACKED and not config.conditional
        wanted = config.stack == "on" or (config.stack == "auto" and stacks)
        self.stack = Stack(list(nodes.values())) if wanted and len(nodes) > 1 else None

    def update(self, round_index: int, fakes: Mapping[int, Tensor]) -> None:
        """The local steps of a round, each node's against its own fakes."""
        if self.stack is not None:
            with self.post.computing_together(self.nodes, UPDATE):
                self.stack.local_update(round_index, fakes)
            return
        for node, d in self.nodes.items():
            with self.post.computing(node, UPDATE):
                d.local_update(round_index, fakes[node])

    def feedback(self, images: Mapping[int, Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        """Each node's gradients at each of its batches (`DNode.feedback`); all nodes have as many batches."""
        if self.stack is not None:
            with self.post.computing_together(self.nodes, FEEDBACK):
                places = range(len(next(iter(images.values()))))
                found = [self.stack.feedback({n: images[n][place] for n in images}) for place in places]
            return {node: [gradients[node] for gradients in found] for node in images}
        answers = {}
        for node, batches in images.items():
            with self.post.computing(node, FEEDBACK):
                answers[node] = [self.nodes[node].feedback(batch) for batch in batches]
        return answers
