"""``python -m sia_layers map``: the self-information of a photograph, or of a model's feature maps of it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sia_layers.cli import models
from sia_layers.cli.common import (
    DRAWING_ADVICE,
    Parser,
    Refusal,
    add_information,
    described,
    information,
    read_photo,
    refusing,
)
from sia_layers.cli.folders import Photos
from sia_layers.frequency import frequency_self_information
from sia_layers.functional import self_information
from sia_layers.injection import sia_modules
from sia_layers.injection.names import CHILD
from sia_layers.inspection import capture_self_information
from sia_layers.kernels import backends
from sia_layers.kernels.options import Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sia_layers.photo import Photo

FILE, FOLDER = Path("sia_map.png"), Path("sia_maps")
PHOTO_KERNEL_SIZE, MODEL_KERNEL_SIZE, BLOCKS_KERNEL_SIZE = 7, 3, 3
BLOCK = 8  # pixels, as in JPEG
DOMAINS = ("spatial", "frequency")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command."""
    about = (
        "Compute the self-information of a photograph and draw it: photo, map, overlay and distribution. With --model, "
        "inject SIA into a model and draw the map at every site. For a folder, draw each of its photographs."
    )
    command = commands.add_parser("map", help="self-information of a photograph", description=about)
    option = command.add_argument
    option("photo", nargs="?", type=Path, metavar="PHOTO",
        help="a file in any format that Pillow reads, or a folder, with its subfolders (an astronaut)")  # fmt: skip
    option("-o", "--output", type=Path, metavar="FILE",
        help=f"the figure, in the format of its suffix ({FILE}); for a folder, a folder ({FOLDER})")  # fmt: skip
    option("--dpi", type=float, default=150, metavar="N", help="pixels per inch of the figure (%(default)s)")
    option(
        "--domain",
        choices=DOMAINS,
        help=f"measure pixels, or DCT coefficients of 8 x 8 blocks, with a window of blocks ({DOMAINS[0]})",
    )
    add_information(command, f"{PHOTO_KERNEL_SIZE}; {MODEL_KERNEL_SIZE} in a model, {BLOCKS_KERNEL_SIZE} for blocks")
    models.add(command, required=False)
    option("--stages", nargs="+", metavar="STAGE",
        help="where to inject: names of modules, patterns or reductions (the reductions 4, 8 and 16)")  # fmt: skip
    command.set_defaults(run=run, prog=command.prog)


def run(given: argparse.Namespace) -> None:
    """Compute the self-information, draw it, and print a table."""
    photo_kernel_size = BLOCKS_KERNEL_SIZE if given.domain == "frequency" else PHOTO_KERNEL_SIZE
    options = information(given, photo_kernel_size if given.model is None else MODEL_KERNEL_SIZE)
    if given.model is None:
        models.refuse_options_without_model(given, "stages")
    if given.photo is not None and given.photo.is_dir():
        _folder(given, given.photo, given.output or FOLDER, options)
        return
    output = given.output or FILE
    _check_output(output, given.dpi)
    photo = read_photo(given.photo, output)
    _draw(given, photo, _backbone(given, options), options, output)


def _folder(given: argparse.Namespace, folder: Path, output: Path, options: Options) -> None:
    """Draw each photograph in a folder, under its own path with ".png" appended."""
    _check_output(output / "figure.png" if output.is_dir() else output.with_name("figure.png"), given.dpi)
    if output.is_dir() and output.samefile(folder):
        raise Refusal(f"{output} is the folder of the photographs; choose another with -o")
    if not output.is_dir() and (output.exists() or output.suffix):
        raise Refusal(f"{folder} is a folder, so {output} must be a folder as well, for the figures")
    photos = Photos([folder], without=output)
    backbone = _backbone(given, options)
    for path, photo in photos.read():
        target = output / path.relative_to(folder).with_name(f"{path.name}.png")
        with refusing(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
        _draw(given, photo, backbone, options, target)
        print()
    photos.report()


def _check_output(output: Path, dpi: float) -> None:
    with refusing(ImportError, advice=DRAWING_ADVICE):
        from sia_layers import visualize
    with refusing(visualize.FigureError):
        visualize.check_output(output, dpi)


def _backbone(given: argparse.Namespace, options: Options) -> models.Backbone | None:
    if given.model is None:
        return None
    backbone = models.make(given)
    models.inject(backbone, given, options)
    return backbone


def _draw(
    given: argparse.Namespace, photo: Photo, backbone: models.Backbone | None, options: Options, output: Path
) -> None:
    from sia_layers import visualize

    figure = _of_photo(given, photo, options) if backbone is None else _of_model(given, backbone, photo, options)
    with refusing(visualize.FigureError):
        visualize.write(figure, output, given.dpi)
    print(f"figure    {output}")


def _of_photo(given: argparse.Namespace, photo: Photo, options: Options) -> Figure:
    from sia_layers import visualize

    with refusing(RuntimeError, AssertionError, ValueError):
        pixels = photo.pixels.to(given.device)
        backend = backends.select(pixels, given.backend)
        start = time.perf_counter()
        if given.domain == "frequency":
            info = _of_blocks(pixels, options, backend)
        else:
            info = self_information(pixels, **options._asdict(), backend=backend)
        seconds = time.perf_counter() - start
        info = info.cpu()
    caption = [f"{photo.width} × {photo.height} pixels", *_described(given, photo, options)]
    figure = visualize.draw(photo, info, " · ".join(caption))
    _print_table(photo, info, options)
    print(f"backend   {backend}, on device {pixels.device}")
    print(f"time      {seconds:.3f} s")
    return figure


def _of_blocks(pixels: Tensor, options: Options, backend: str) -> Tensor:
    """Average over the sub-bands of each channel, and repeat the value of each block at all of its pixels."""
    info = frequency_self_information(pixels, **options._asdict(), block=BLOCK, backend=backend)
    mean = info.reshape(1, pixels.shape[1], -1, *info.shape[2:]).mean(2)
    whole: Tensor = mean.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    return whole[:, :, : pixels.shape[2], : pixels.shape[3]]


def _described(given: argparse.Namespace, photo: Photo, options: Options) -> list[str]:
    if given.domain != "frequency":
        return described(options, len(photo.channels))
    window, *rest = described(options, BLOCK * BLOCK - 1)
    return [f"DCT of {BLOCK} × {BLOCK}", f"{window} blocks", *(part.replace("channel", "sub-band") for part in rest)]


def _of_model(given: argparse.Namespace, backbone: models.Backbone, photo: Photo, options: Options) -> Figure:
    from sia_layers import visualize

    seen = backbone.seen(photo)
    with refusing(RuntimeError, AssertionError, ValueError):
        model, pixels = backbone.model.to(given.device), backbone.normalized(seen).to(given.device)
        start = time.perf_counter()
        with torch.no_grad(), capture_self_information(model) as maps:
            model(pixels)
        seconds = time.perf_counter() - start
        maps = {name.removesuffix(f".{CHILD}"): info.float().cpu() for name, info in maps.items()}
    options = next(iter(sia_modules(model).values())).options  # a checkpoint may hold its own
    caption = [f"{backbone.name}, {backbone.weights}", f"{seen.width} × {seen.height} pixels"]
    figure = visualize.draw_sites(
        seen, maps, " · ".join([*caption, *described(options, min(info.shape[1] for info in maps.values()))])
    )
    print(f"photo     {photo.name}, {photo.width} x {photo.height} pixels, seen as {seen.width} x {seen.height}")
    print(f"model     {backbone.name}, {backbone.weights}\n")
    width = max(len(name) for name in maps)
    print(f"{'site':{width}}  channels        size  I_avg (nats)   maximum")
    for name, info in maps.items():
        size = f"{info.shape[3]} x {info.shape[2]}"
        print(f"{name:{width}}  {info.shape[1]:8}{size:>12}{info.mean():14.4f}{info.max():10.4f}")
    print(f"\ntime      {seconds:.3f} s, the whole model")
    return figure


def _print_table(photo: Photo, info: Tensor, options: Options) -> None:
    print(f"photo     {photo.name}, {photo.width} x {photo.height} pixels, {' '.join(photo.channels)}")
    print("options   " + ", ".join(f"{name} {value}" for name, value in options._asdict().items()))
    print()
    print("nats         I_avg   minimum    median   maximum")
    rows = dict(zip(photo.channels, info[0], strict=True))
    if len(rows) > 1:
        rows["all"] = info[0].mean(0)
    for name, plane in rows.items():
        values = (plane.mean(dtype=torch.float64), plane.min(), plane.median(), plane.max())
        print(f"{name:8}" + "".join(f"{value.item():10.4f}" for value in values))
    print()
