"""Evaluation: the classifier is good, cached, deterministic and shared; scores order images rightly."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as weights_of

from dance.data import ImageData, load
from dance.errors import NonFiniteError
from dance.metrics import Evaluation, Evaluator
from dance.metrics.network import SHIPPED, ColourNetwork, FeatureNetwork, _read, features_of


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def evaluator(digits: ImageData, cache: Path) -> Evaluator:
    return Evaluator(digits, cache_dir=cache)


def drawn(digits: ImageData, noise: float = 0.0, classes: int = 10) -> Callable[[int], torch.Tensor]:
    """Real images with noise, only of the first classes: the better the less noise and the more classes."""
    assert digits.labels is not None
    generator = torch.Generator().manual_seed(1)
    images = digits.images[digits.labels < classes]

    def sample(num_images: int) -> torch.Tensor:
        chosen = images[torch.randint(len(images), (num_images,), generator=generator)]
        return (chosen + noise * torch.randn(chosen.shape, generator=generator)).clamp(-1, 1)

    return sample


def test_classifier_is_right_on_images_it_has_not_seen(evaluator: Evaluator) -> None:
    assert evaluator.accuracy is not None
    assert evaluator.accuracy >= 0.98


def test_counts_and_ranges(evaluator: Evaluator, digits: ImageData) -> None:
    result = evaluator.evaluate(drawn(digits))
    assert result.num_images == 10_000
    assert result.num_real == 1797
    assert result.score is not None
    assert 9.5 < result.score <= 10
    assert 0 <= result.fid < 2
    assert result.class_histogram is not None
    assert len(result.class_histogram) == 10
    assert sum(result.class_histogram) == pytest.approx(1)
    assert result.classes_drawn == 10
    assert result.entropy == pytest.approx(math.log(10), abs=0.01)


def test_order_by_noise_and_by_missing_classes(evaluator: Evaluator, digits: ImageData) -> None:
    by_noise = [evaluator.evaluate(drawn(digits, noise)) for noise in (0.0, 0.3, 1.0)]
    assert [r.fid for r in by_noise] == sorted(r.fid for r in by_noise)
    assert [r.score for r in by_noise] == sorted((r.score or 0 for r in by_noise), reverse=True)
    half = evaluator.evaluate(drawn(digits, classes=5))
    assert half.classes_drawn == 5
    assert half.score is not None
    assert 4 < half.score < 6
    assert half.fid > by_noise[0].fid
    assert half.entropy == pytest.approx(math.log(5), abs=0.05)


def test_real_images_are_their_own_best(evaluator: Evaluator) -> None:
    real = evaluator.evaluate_real()
    assert real.fid == pytest.approx(0, abs=1e-6)
    assert real.score is not None
    assert real.score > 9.5


def test_features_do_not_depend_on_layout_or_batch(evaluator: Evaluator, digits: ImageData) -> None:
    """Against the same network in double precision, all images at once, channels outermost."""
    exact = deepcopy(evaluator._network).to(memory_format=torch.contiguous_format).double()
    with torch.no_grad():
        expected = exact.features(digits.images.double())
        found = features_of(evaluator._network, digits.images)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_fid_is_the_frechet_distance_of_the_features(evaluator: Evaluator, digits: ImageData) -> None:
    """Against scipy's matrix square root, the textbook form."""
    linalg = pytest.importorskip("scipy.linalg")
    images = drawn(digits, 0.5)(10_000)
    network = evaluator._network
    with torch.no_grad():
        fake, real = (network.features(x).double().numpy() for x in (images, digits.images))
    covariances = np.cov(fake.T), np.cov(real.T)
    # A hair on the diagonal: features that are always 0 make the product singular.
    hair = 1e-9 * np.eye(64)
    root = linalg.sqrtm((covariances[0] + hair) @ (covariances[1] + hair))
    distance = np.square(fake.mean(0) - real.mean(0)).sum()
    expected = distance + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    rest = [images]

    def sample(num_images: int) -> torch.Tensor:
        head, rest[0] = rest[0][:num_images], rest[0][num_images:]
        return head

    assert evaluator.evaluate(sample).fid == pytest.approx(expected, rel=1e-3)


def test_equal_images_give_equal_results_whatever_threads_and_generator(
    evaluator: Evaluator, digits: ImageData
) -> None:
    threads = torch.get_num_threads()
    first = evaluator.evaluate(drawn(digits, 0.3))
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    torch.set_num_threads(2)
    try:
        assert evaluator.evaluate(drawn(digits, 0.3)) == first
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.random.get_rng_state(), before)
    finally:
        torch.set_num_threads(threads)


def test_training_is_deterministic_and_a_damaged_cache_is_redone(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    first = Evaluator(small(), cache_dir=tmp_path, num_images=100, on_training=said.append)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    weights = weights_of(whole)
    for damaged in (whole[:-300] + b"\0" * 300, whole[:100], b""):
        path.write_bytes(damaged)
        said.clear()
        torch.manual_seed(7)  # has no say
        Evaluator(small(), cache_dir=tmp_path, num_images=100, on_training=said.append)
        assert len(said) == 2
        again = weights_of(path.read_bytes())
        assert weights.keys() == again.keys()
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    said.clear()
    cached = Evaluator(small(), cache_dir=tmp_path, num_images=100, on_training=said.append)
    assert said == []
    assert cached.accuracy == first.accuracy


def small(labels: bool = True, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(400, 1, 8, 8, generator=generator) * 2 - 1
    values = torch.randint(0, 3, (400,), generator=generator)
    images[torch.arange(400), 0, 0, values] = 1.0
    some = values if labels else None
    return ImageData(
        name="a/b c",
        images=images,
        labels=some,
        test_images=images,
        test_labels=some,
        num_classes=3 if labels else 0,
    )


def _evaluate(folder: str, results: multiprocessing.Queue[tuple[int, Evaluation]]) -> None:
    said: list[str] = []
    evaluator = Evaluator(small(), cache_dir=Path(folder), num_images=200, on_training=said.append)
    results.put((len(said), evaluator.evaluate(lambda n: small(seed=5).images[:n])))


def test_processes_that_ask_at_once_train_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, Evaluation]] = context.Queue()
    processes = [context.Process(target=_evaluate, args=(str(tmp_path), results)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(said for said, _ in got) == [0, 2]
    assert len({repr(result) for _, result in got}) == 1


def test_other_data_or_seed_is_another_network(tmp_path: Path) -> None:
    for data, seed in ((small(), 0), (small(seed=1), 0), (small(), 1)):
        Evaluator(data, cache_dir=tmp_path, seed=seed, num_images=10)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="DANCE_CACHE"):
        evaluator = Evaluator(small(), cache_dir=tmp_path / "file" / "cache", num_images=100)
    assert evaluator.accuracy is not None


def test_images_without_labels_have_an_fid_only(tmp_path: Path) -> None:
    evaluator = Evaluator(small(labels=False), cache_dir=tmp_path, num_images=300)
    result = evaluator.evaluate(lambda n: small(labels=False, seed=2).images[:n])
    assert (result.score, result.class_histogram, result.entropy, result.classes_drawn) == (None,) * 4
    assert evaluator.accuracy is None
    worse = evaluator.evaluate(lambda n: torch.ones(n, 1, 8, 8))
    assert 0 <= result.fid < worse.fid


def test_kid_is_the_unbiased_mmd_of_the_features(evaluator: Evaluator, digits: ImageData) -> None:
    """Against the formula (Binkowski et al. 2018, eq. 4) on all images at once; 20 subsets estimate that."""
    images = drawn(digits, 0.7)(2000)
    network = evaluator._network
    with torch.no_grad():
        x, y = (network.features(part).double() for part in (digits.images, images))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 64 + 1) ** 3

    def mean_off_diagonal(values: torch.Tensor) -> torch.Tensor:
        return (values.sum() - values.trace()) / (len(values) * (len(values) - 1))

    expected = mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    rest = [images]

    def sample(num_images: int) -> torch.Tensor:
        head, rest[0] = rest[0][:num_images], rest[0][num_images:]
        return head

    few = Evaluator.__new__(Evaluator)
    few.__dict__ |= evaluator.__dict__ | {"num_images": 2000}
    assert few.evaluate(sample).kid == pytest.approx(expected.item(), rel=0.1)
    assert evaluator.evaluate_real().kid == pytest.approx(0, abs=0.05 * expected.item())


def test_points_are_counted_by_mode(tmp_path: Path) -> None:
    """Three modes of eight, one of them under 2 %, and a tenth of all points between the modes."""
    data = load("gaussians")
    assert data.centres is not None
    counts = {0: 500, 3: 385, 5: 15}
    points = torch.cat([data.centres[k].expand(n, 2) for k, n in counts.items()])
    points = torch.cat([points, torch.zeros(100, 2)]).view(-1, 1, 1, 2)
    points[:500, 0, 0, 0] += 3.9 * data.deviation  # still near its mode
    rest = [points]

    def sample(num_images: int) -> torch.Tensor:
        head, rest[0] = rest[0][:num_images], rest[0][num_images:]
        return head

    found = Evaluator(data, cache_dir=tmp_path, num_images=1000).evaluate(sample)
    assert (found.modes, found.score) == (2, None)
    assert found.near == pytest.approx(0.9)
    assert found.class_histogram is not None
    assert found.class_histogram[3] == pytest.approx(0.385, abs=0.101)
    real = Evaluator(data, cache_dir=tmp_path, num_images=1000).evaluate_real()
    assert real.modes == 8
    assert real.near == pytest.approx(1 - math.exp(-8), abs=6e-4)  # of a plane Gaussian within 4 deviations
    assert real.fid == pytest.approx(0, abs=1e-6)


def test_bad_images_are_named(evaluator: Evaluator, digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="diverged"):
        evaluator.evaluate(lambda n: torch.full((n, 1, 8, 8), math.nan))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 9, 9\)"):
        evaluator.evaluate(lambda n: torch.zeros(n, 1, 9, 9))
    with pytest.raises(ValueError, match="at least 2"):
        Evaluator(digits, num_images=1, cache_dir=tmp_path)
    tiny = replace(digits, images=torch.zeros(9, 1, 2, 2), test_images=torch.zeros(9, 1, 2, 2))
    with pytest.raises(ValueError, match="too small"):
        Evaluator(tiny, cache_dir=tmp_path)
    # and it still works afterwards
    assert evaluator.evaluate_real().fid == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("digits", FeatureNetwork, (1, 8, 8)),
        ("mnist", FeatureNetwork, (1, 28, 28)),
        ("fashion-mnist", FeatureNetwork, (1, 28, 28)),
        ("cifar10", ColourNetwork, (3, 32, 32)),
    ],
)
def test_a_network_of_each_built_in_data_set_comes_with_the_package(
    name: str, kind: type[FeatureNetwork], shape: tuple[int, int, int]
) -> None:
    (path,) = SHIPPED.glob(f"{name}-*.safetensors")
    known = _read(path, kind(shape, 10))  # checks its digest
    assert known is not None
    assert known.accuracy is not None
    assert known.accuracy > (0.75 if name == "cifar10" else 0.9)


def test_the_network_of_the_package_is_taken_and_gives_the_fid_it_gave_elsewhere(
    digits: ImageData, tmp_path: Path
) -> None:
    """A network trained here would give another FID: unlike CPUs end training with unlike weights."""
    said: list[str] = []
    evaluator = Evaluator(digits, cache_dir=tmp_path, num_images=1797, on_training=said.append)
    assert (said, list(tmp_path.iterdir())) == ([], [])
    mirrored = iter(torch.split(digits.images.flip(3), 1000))
    result = evaluator.evaluate(lambda _: next(mirrored))
    assert result.fid == pytest.approx(208.513, rel=1e-3)  # features round otherwise on another CPU
    assert result.score == pytest.approx(5.979, rel=1e-3)
