"""All studies, by their letter, the most important first."""

from __future__ import annotations

from benchmarks.studies import gap, images, sweeps
from benchmarks.studies.frame import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        images.study("a", "Fashion-MNIST over 8 nodes", images.FASHION),
        sweeps.GAUSSIANS,
        sweeps.CODECS,
        images.study("b", "MNIST over 8 nodes", images.MNIST, cut=images.MNIST_CUT),
        images.study(
            "i", "DCGAN on Fashion-MNIST over 8 nodes", images.CONVOLUTIONAL, cut=images.CONVOLUTIONAL_CUT
        ),
        sweeps.BANDWIDTH,
        gap.STUDY,
        sweeps.SCALING,
        images.study("c", "CIFAR-10 over 4 nodes", images.CIFAR, cut=images.CIFAR_CUT),
    )
}
