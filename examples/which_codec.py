"""Which codec should I use on my link? What an all-reduce will take with each, and what `Auto` would choose.

    python examples/which_codec.py --mbps 100 --latency-ms 1 --world 4 --numel 1000000

The codecs are timed on this machine; the wire is the link that you describe, the same in both directions for
all ranks. `Auto` is shown a few calls over it, as it would see them in training. No torch, no network.
"""

import argparse

from dance.codec_speed import measure_speed
from dance.plan import plan
from dance.policy import Auto, Outcome, Send

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--mbps", type=float, default=100.0, help="what a rank can send, in Mbit/s")
parser.add_argument("--latency-ms", type=float, default=1.0, help="one way")
parser.add_argument("--world", type=int, default=4, help="ranks")
parser.add_argument("--numel", type=int, default=1_000_000, help="float32 elements of a tensor")
parser.add_argument(
    "--without-feedback", action="store_true", help="what is lost is lost: only careful codecs"
)
parser.add_argument("--candidates", nargs="*", help="such as none int8 topk:ratio=0.01; default: Auto's own")
parser.add_argument(
    "--max-error", type=float, help="lost share of the norm; default 0.2, without feedback 0.02"
)
options = parser.parse_args()
if not options.mbps > 0:
    parser.error(f"argument --mbps: expected a rate above 0, got {options.mbps}")

feedback = not options.without_feedback
policy = Auto(options.candidates, objective="time", max_error=options.max_error)


def send(call, numel):
    return Send(kind="all_reduce", round=call, numel=numel, world=options.world, feedback=feedback)


for call in range(1, 9):
    each = send(call, options.numel if call % 2 else options.numel // 4)  # two sizes tell rate from latency
    codec = policy.choose(each)
    cost = plan("all_reduce", codec, each.numel, options.world)
    wire_s = cost.phases * options.latency_ms / 1e3 + cost.bytes_sent * 8 / (options.mbps * 1e6)
    speed = measure_speed(codec, feedback=feedback)
    encode_s, decode_s = cost.encoded * speed.encode_s, cost.decoded * speed.decode_s
    took = Outcome(
        seconds=wire_s + encode_s + decode_s,
        encode_s=encode_s,
        decode_s=decode_s,
        wire_bytes=cost.bytes_sent,
        wire_s=None if cost.algorithm == "direct" else wire_s,
    )
    policy.observe(each, codec, took)
    policy.agree(policy.figures())  # what ranks have measured; here one speaks for all

print(policy.explain(send(9, options.numel)))
