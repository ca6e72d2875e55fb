"""Learning rates of dcgan and sngan: a short sweep on Fashion-MNIST, standalone and over four D-Nodes.

python benchmarks/studies/models.py --models dcgan --rates 2e-4 1e-3 --rounds 600
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from dance.gan import RunConfig, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dcgan", "sngan"])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-4, 5e-4, 1e-3, 2e-3])
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.0], help="G's rate over D's")
    parser.add_argument("--algorithm", default="ac-gan")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--loss", default="non-saturating")
    parser.add_argument("--out", type=Path, default=None, help="append a JSON line a run here")
    arguments = parser.parse_args()
    for model in arguments.models:
        for rate in arguments.rates:
            for ratio in arguments.ratios:
                with tempfile.TemporaryDirectory() as folder:
                    config = RunConfig(
                        algorithm=arguments.algorithm,
                        layout="model-parallel",
                        data=arguments.data,
                        d_nodes=4,
                        model=model,
                        channels=arguments.channels,
                        loss=arguments.loss,
                        d_learning_rate=rate,
                        g_learning_rate=rate * ratio,
                        rounds=arguments.rounds,
                        evaluate_every=0,
                        evaluate_images=5000,
                        checkpoint_every=0,
                        simulate=True,
                        out=folder,
                    )
                    summary = run(config).summary
                    kept = {
                        "model": model,
                        "d_rate": rate,
                        "g_rate": rate * ratio,
                        "loss": arguments.loss,
                        "rounds": arguments.rounds,
                        **{key: summary[key] for key in ("fid", "fid_raw", "score", "seconds")},
                    }
                print(json.dumps(kept), flush=True)
                if arguments.out is not None:
                    with open(arguments.out, "a", encoding="utf-8") as file:
                        file.write(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
