"""Any torch Dataset as an ImageData, and an ImageData as a file that other processes of a run read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dance.data.images import ImageData
from dance.errors import DanceError

if TYPE_CHECKING:
    import torch

ENDING = ".safetensors"


def from_dataset(
    dataset: Any, test: Any = None, *, name: str = "dataset", value_range: tuple[float, float] = (0.0, 1.0)
) -> ImageData:
    """Read a map-style torch Dataset, and optionally another one as its test part, into memory.

    An item is an image or (image, label). An image is a float tensor (c, h, w) with values in `value_range`
    (torchvision's ToTensor gives 0 to 1), a uint8 tensor (c, h, w), or a PIL image or uint8 array (h, w) or
    (h, w, c). Raises ValueError naming the first item at fault.
    """
    images, labels = _read(dataset, name, value_range)
    test_images, test_labels = (
        (images, labels) if test is None else _read(test, f"{name} (test)", value_range)
    )
    if test_images.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"{name}: images are {tuple(images.shape[1:])}, of the test part {tuple(test_images.shape[1:])}; "
            "sizes must agree"
        )
    known = [part for part in (labels, test_labels) if part is not None]
    return ImageData(
        name=name,
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=max((int(part.max()) + 1 for part in known), default=0),
    )


def _read(
    dataset: Any, name: str, value_range: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    import torch

    if not len(dataset):
        raise ValueError(f"{name}: the data set is empty")
    images: list[torch.Tensor] = []
    labels: list[int] = []
    for index in range(len(dataset)):
        item = dataset[index]
        labelled = isinstance(item, (tuple, list))
        image = _image(item[0] if labelled else item, f"{name}, item {index}", value_range)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{name}, item {index}: {tuple(image.shape)}, but item 0 is {tuple(images[0].shape)}; "
                "resize in the data set's transform"
            )
        images.append(image)
        if labelled and len(item) > 1:
            labels.append(int(item[1]))
    if labels and (len(labels) < len(images) or min(labels) < 0):
        raise ValueError(f"{name}: every item must have a label from 0, or none")
    return torch.stack(images), torch.tensor(labels) if labels else None


def _image(value: Any, where: str, value_range: tuple[float, float]) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        array = np.asarray(value)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(
                f"{where}: {type(value).__name__} of {array.dtype}; give uint8 (h, w) or (h, w, c)"
            )
        value = torch.from_numpy(array.copy() if array.ndim == 3 else array[..., None].copy()).permute(
            2, 0, 1
        )
    if value.ndim != 3 or value.shape[0] not in (1, 3):
        raise ValueError(f"{where}: shape {tuple(value.shape)}; expected (1 or 3, height, width)")
    low, high = (0.0, 255.0) if value.dtype == torch.uint8 else value_range
    image = value.to(torch.float32)
    if not bool(((image >= low) & (image <= high)).all()):
        raise ValueError(
            f"{where}: values from {float(image.min()):g} to {float(image.max()):g}, expected {low:g} to "
            f"{high:g}; name the range with value_range=(low, high)"
        )
    scaled: torch.Tensor = (image - low) * (2 / (high - low)) - 1
    return scaled


def save(data: ImageData, path: Path) -> None:
    """Write `data` for `load_saved`; all bits are kept."""
    from safetensors.torch import save as payload_of

    tensors = {"images": data.images.contiguous()}
    optional = {"labels": data.labels, "test_labels": data.test_labels, "centres": data.centres}
    if data.test_images is not data.images:
        optional["test_images"] = data.test_images
    tensors |= {key: tensor.contiguous() for key, tensor in optional.items() if tensor is not None}
    about = {
        "name": data.name,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "deviation": data.deviation,
    }
    if data.test_images is data.images:
        tensors.pop("test_labels", None)
    path.write_bytes(payload_of(tensors, metadata={"about": json.dumps(about)}))


def load_saved(path: Path) -> ImageData:
    """Read what `save` wrote. Raises DanceError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        images, labels = tensors["images"], tensors.get("labels")
        return ImageData(
            name=about["name"],
            images=images,
            labels=labels,
            test_images=tensors.get("test_images", images),
            test_labels=tensors.get("test_labels") if "test_images" in tensors else labels,
            num_classes=about["num_classes"],
            class_names=tuple(about["class_names"]),
            centres=tensors.get("centres"),
            deviation=about["deviation"],
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DanceError(f"{path}: not a data set saved by dance ({error}); make it anew") from error
