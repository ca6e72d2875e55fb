"""What a sharded model's compression keeps at a rank: settings, residuals by parameter, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch

import dance.distributed as dd
from dance.codecs import Codec
from dance.codecs import codec as to_codec
from dance.feedback import ErrorFeedback
from dance.fsdp.message import Message, messages_of

# What attach made, by id of the FSDP module: it keeps its modules alive, so that none has another's id.
_ATTACHED: WeakValueDictionary[int, Compression] = WeakValueDictionary()
_SAME = "load it into the model that it was saved with"


class Compression:
    """What `dance.fsdp.attach` returns. `codec` may be set between steps; `detach` ends it.

    ``bytes_sent`` counts headers, too, ``raw_bytes`` what the same messages would have been uncompressed:
    of "gradients" (reduce-scatter) and "parameters" (all-gather with a codec).
    """

    def __init__(
        self, module: torch.nn.Module, codec: Any, *, feedback: bool, min_bytes: int, seed: int
    ) -> None:
        self.codec = to_codec(codec) if isinstance(codec, str) and codec != "auto" else codec
        self.messages = messages_of(module)
        self.attached = True
        for each in self._modules():
            other = _ATTACHED.get(id(each))
            if other is not None and other.attached:
                raise ValueError(
                    f"fsdp: the model is compressed already; set the codec of what attach returned "
                    f"(compression.codec = {str(codec)!r}), or call its detach() before attach"
                )
        # A policy's residuals fit any codec.
        store = self.codec if isinstance(self.codec, Codec) else "int8"
        self.feedback = ErrorFeedback(store) if feedback else None
        self.min_bytes = min_bytes
        self.seed = seed
        self.bytes_sent = {"gradients": 0, "parameters": 0}
        self.raw_bytes = {"gradients": 0, "parameters": 0}
        _ATTACHED.update(dict.fromkeys(map(id, self._modules()), self))

    def _modules(self) -> list[Any]:
        return [each for message in self.messages for each in message.modules]

    def detach(self) -> None:
        """Sends as torch does from the next step on, at all ranks alike; then `attach` takes the model again.

        Residuals and counts stay here: what is still owed goes on with ``load_state_dict(old.state_dict())``.
        """
        self.attached = False

    def count(self, kind: str, work: dd.Work) -> None:
        """Adds what a collective, now done, has sent."""
        self.bytes_sent[kind] += work.stats().bytes_sent
        self.raw_bytes[kind] += work.stats().raw_bytes

    def check(self, message: Message, numel: int) -> None:
        """Makes residuals of ``message`` fit for a call with ``numel`` elements, or raises ValueError."""
        if self.feedback is None:
            return
        if numel != message.numel:
            raise ValueError(
                f"fsdp: in {message.key!r} some parameters have no gradient in this step; call "
                "set_reduce_scatter_unused_params(True) on the model, pass feedback=False, or detach() and "
                "attach anew after freezing some"
            )
        residual = self.feedback.residual(message.key)
        if residual is not None:
            message.clear_padding(residual)  # sign decodes zeros to others

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot of the residuals of this rank by parameter, in their whole shapes, so that any
        sharding can load them. Empty without feedback.

        After a change of the number of ranks pass what `dance.feedback.reshard` makes of all ranks' states.
        """
        if self.feedback is None:
            return {}
        state = self.feedback.state_dict()
        residuals: dict[str, torch.Tensor] = {}
        steps: dict[str, int] = {}
        for message in self.messages:
            steps |= {each.name: state["steps"].get(message.key, 0) for each in message.parameters}
            if message.key in state["residuals"]:
                residuals |= message.split(state["residuals"][message.key])
        return {**state, "residuals": residuals, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a snapshot; ValueError, which changes nothing, for one of other parameters."""
        if self.feedback is None:
            if state:
                raise ValueError("fsdp: the state holds residuals; attach with feedback=True to go on")
            return
        residuals: dict[str, torch.Tensor] = {}
        steps: dict[str, int] = {}
        left = dict(state["residuals"])
        for message in self.messages:
            names = [each.name for each in message.parameters]
            steps[message.key] = max((state["steps"].get(name, 0) for name in names), default=0)
            found = {name: left.pop(name) for name in names if name in left}
            if not found:
                continue
            for each in message.parameters:
                if each.name not in found or tuple(found[each.name].shape) != each.shape:
                    raise ValueError(
                        f"fsdp: the state has no residual of {each.name!r} with shape {each.shape}; {_SAME}"
                    )
            residuals[message.key] = message.join(found)
        if left:
            raise ValueError(f"fsdp: the state has a residual of {min(left)!r}, unknown here; {_SAME}")
        self.feedback.load_state_dict({**state, "residuals": residuals, "steps": steps})
