"""Draw the figures of docs/method.md: ``python docs/pictures.py`` writes docs/images/method_*.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from skimage import data
from torch import Tensor

from sia_layers import SIAggregation, self_information

mpl.use("Agg")
IMAGES = Path(__file__).parent / "images"


def photograph() -> Tensor:
    """Return a crop of the cat photograph, of shape (1, 3, 256, 256) and in [0, 1]."""
    return torch.from_numpy(data.chelsea()[20:276, 90:346]).permute(2, 0, 1).unsqueeze(0).float() / 255


def row(count: int, height: float = 2.9) -> tuple[Any, Any]:
    """Return a figure with ``count`` panels in a row, and the axes of the panels."""
    figure, axes = plt.subplots(1, count, figsize=(2.5 * count, height), layout="constrained")
    for place in axes:
        place.set_axis_off()
    return figure, axes


def save(figure: Any, name: str) -> None:
    """Save the figure and close it."""
    figure.savefig(IMAGES / f"method_{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def show(place: Any, values: Tensor, title: str, **options: Any) -> Any:
    """Show a map or a photograph with three channels."""
    place.set_title(title, fontsize=10)
    return place.imshow(values.permute(1, 2, 0) if values.dim() == 3 else values, **options)


def terms(x: Tensor) -> None:
    """Draw the photograph and each term of I."""
    intra = self_information(x, 7, inter_channels=0)[0].mean(0)
    inter = self_information(x, 1, inter_channels=2)[0].mean(0)
    total = self_information(x, 7, inter_channels=2)[0].mean(0)
    figure, axes = row(4)
    show(axes[0], x[0], "x")
    for place, info, title in zip(axes[1:], (intra, inter, total), ("intra, K = 7", "inter, S = 2", "I"), strict=True):
        figure.colorbar(show(place, info, title, cmap="inferno", vmin=0), ax=place, location="bottom", shrink=0.9)
    save(figure, "terms")


def windows(x: Tensor) -> None:
    """Draw two windows, the weights of their pixels, and the resulting self-information."""
    grey, radius = x[:, 1:2], 3
    info = self_information(grey, 2 * radius + 1)[0, 0]
    patches = grey[0, 0].unfold(0, 7, 1).unfold(1, 7, 1)
    squares = (patches - grey[0, 0, radius:-radius, radius:-radius, None, None]).square()
    scale = squares.mean() * 49 / 48  # the centre is not its own neighbour
    figure, axes = row(5)
    show(axes[0], grey[0, 0], "a channel, two windows", cmap="gray")
    rarest = divmod(int(info[16:-16, 16:-16].argmax()), info.shape[1] - 32)
    improbable = rarest[0] + 16, rarest[1] + 16
    for index, ((i, j), colour) in enumerate(((improbable, "tab:cyan"), ((150, 118), "tab:orange"))):
        axes[0].add_patch(Rectangle((j - 8, i - 8), 17, 17, fill=False, edgecolor=colour, linewidth=2))
        window, weights = axes[1 + 2 * index], axes[2 + 2 * index]
        show(window, grey[0, 0, i - 3 : i + 4, j - 3 : j + 4], "its 7 × 7 pixels", cmap="gray", vmin=0, vmax=1)
        kernel = torch.exp(-squares[i - 3, j - 3] / (2 * scale))
        title = f"weights: p = {kernel.mean():.2f}\nI = −log p = {info[i, j]:.2f}"
        show(weights, kernel, title, cmap="viridis", vmin=0, vmax=1)
        for place in (window, weights):
            place.add_patch(Rectangle((-0.5, -0.5), 7, 7, fill=False, edgecolor=colour, linewidth=3, clip_on=False))
    save(figure, "windows")


def gates(x: Tensor) -> None:
    """Draw the effect of the spatial gate."""
    gray = x.mean(1, keepdim=True)
    info = self_information(gray, 7)[0, 0]
    gate = 1 + torch.sigmoid(info)
    figure, axes = row(4)
    show(axes[0], gray[0, 0], "x", cmap="gray", vmin=0, vmax=1)
    options = {"location": "bottom", "shrink": 0.9}
    figure.colorbar(show(axes[1], info, "I", cmap="inferno", vmin=0), ax=axes[1], **options)
    figure.colorbar(show(axes[2], gate, "1 + σ(I)", cmap="viridis", vmin=1.5, vmax=2), ax=axes[2], **options)
    show(axes[3], gray[0, 0] * gate, "y = x · (1 + σ(I))", cmap="gray", vmin=0, vmax=2)
    save(figure, "gates")


def borders(x: Tensor) -> None:
    """Draw a corner under each padding mode."""
    corner = x[:, 1:2, -48:, :48]
    modes = ("exclude", "zeros", "replicate", "reflect")
    figure, axes = row(5, 2.6)
    show(axes[0], corner[0, 0], "a corner", cmap="gray", vmin=0, vmax=1)
    for place, mode in zip(axes[1:], modes, strict=True):
        info = self_information(corner, 7, padding_mode=mode)
        show(place, info[0, 0], f'"{mode}"', cmap="inferno", vmin=0, vmax=3)
    save(figure, "borders")


def aggregation(x: Tensor) -> None:
    """Draw an early map, max-pooled and averaged to an eighth of its size: only the maximum keeps single pixels."""
    info = self_information(x, 3)
    layer = SIAggregation([3], 1).eval()
    with torch.no_grad():
        layer.projections[0][0].weight.fill_(1 / 3)
        pooled = layer([info], (32, 32))[0, 0]
    average = torch.nn.functional.adaptive_avg_pool2d(info.mean(1, keepdim=True), 32)[0, 0]
    figure, axes = row(3)
    top = float(info.mean(1).max())
    show(axes[0], info[0].mean(0), "I of an early map", cmap="inferno", vmin=0, vmax=top)
    show(axes[1], pooled, "max-pooled, as in SIAggregation", cmap="inferno", vmin=0, vmax=top)
    show(axes[2], average, "averaged: lost", cmap="inferno", vmin=0, vmax=top)
    save(figure, "aggregation")


if __name__ == "__main__":
    photo = photograph()
    for draw in (terms, windows, gates, borders, aggregation):
        draw(photo)
