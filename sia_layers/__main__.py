"""The command line: ``python -m sia_layers map`` and ``python -m sia_layers info``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from sia_layers.functional import self_information
from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

if TYPE_CHECKING:
    from sia_layers.photo import Photo


class Refusal(Exception):
    """What was asked for cannot be done; the message is one line for the user."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None for the process's own.

    Returns:
        The exit code: 0; 2 if the command was refused; 130 if it was interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except Refusal as refusal:
        print(f"{given.prog}: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{given.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads has seen enough; nothing more can be said, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m sia_layers", description="Self-information of feature maps and photographs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_map(commands)
    _add_info(commands)
    return parser


def _add_map(commands: argparse._SubParsersAction[Parser]) -> None:
    about = "Compute the self-information of a photograph and draw it: photo, map, overlay and distribution."
    command = commands.add_parser("map", help="self-information of a photograph", description=about)
    default = Options(kernel_size=7)
    add = command.add_argument
    add("photo", nargs="?", type=Path, metavar="PHOTO", help="in any format that Pillow reads; without, an astronaut")
    add("-o", "--output", type=Path, default=Path("sia_map.png"), metavar="FILE",
        help="the figure, in the format that its suffix names (%(default)s)")  # fmt: skip
    add("--dpi", type=float, default=150, metavar="N", help="pixels of the figure to an inch (%(default)s)")
    add("--kernel-size", type=int, default=default.kernel_size, metavar="K",
        help="side of the window in pixels, odd (%(default)s)")  # fmt: skip
    add("--bandwidth", type=float, default=default.bandwidth, metavar="B",
        help="factor on the bandwidth that is measured on the photo (%(default)s)")  # fmt: skip
    add("--adaptive", action=argparse.BooleanOptionalAction, default=default.adaptive,
        help="measure the bandwidth, or take it as given, white being 1 (measured)")  # fmt: skip
    add("--estimator", choices=ESTIMATORS, default=default.estimator, help="(%(default)s)")
    add("--inter-channels", type=int, default=default.inter_channels, metavar="S",
        help="other channels that each is compared with, as far as there are (%(default)s)")  # fmt: skip
    add("--inter-weight", type=float, default=default.inter_weight, metavar="W",
        help="weight of that comparison (%(default)s)")  # fmt: skip
    add("--padding-mode", choices=PADDING_MODES, default=default.padding_mode,
        help="what the window sees beyond the border (%(default)s)")  # fmt: skip
    add("--backend", choices=backends.BACKENDS, help="what computes it (the best that can)")
    add("--device", default="cpu", metavar="D", help="where, as torch names devices (%(default)s)")
    command.set_defaults(run=_map, prog=command.prog)


def _add_info(commands: argparse._SubParsersAction[Parser]) -> None:
    about = "Print versions and devices, and which backends can run here and why the others cannot."
    command = commands.add_parser("info", help="versions, devices and backends", description=about)
    command.set_defaults(run=_info, prog=command.prog)


def _map(given: argparse.Namespace) -> None:
    with _refusing(ValueError, TypeError):
        options = Options.checked(
            given.kernel_size, bandwidth=given.bandwidth, adaptive=given.adaptive, estimator=given.estimator,
            inter_channels=given.inter_channels, inter_weight=given.inter_weight, padding_mode=given.padding_mode,
        )  # fmt: skip
    with _refusing(ImportError, advice='install what draws: pip install "sia-layers[viz]"'):
        from sia_layers import visualize
    with _refusing(visualize.FigureError):
        visualize.check_output(given.output, given.dpi)
    photo = _photo(given.photo, given.output)
    with _refusing(RuntimeError, AssertionError, ValueError):
        pixels = photo.pixels.to(given.device)
        options.check_input(pixels)
        backend = backends.select(pixels, given.backend)
    start = time.perf_counter()
    info = self_information(pixels, **options._asdict(), backend=backend).cpu()
    seconds = time.perf_counter() - start
    with _refusing(visualize.FigureError):
        visualize.write(visualize.draw(photo, info, _caption(photo, options)), given.output, given.dpi)
    _print_table(photo, info, options)
    print(f"backend   {backend}, on device {pixels.device}")
    print(f"time      {seconds:.3f} s")
    print(f"figure    {given.output}")


def _photo(path: Path | None, output: Path) -> Photo:
    """The photograph to work on, which must not be where the figure goes; the example without a path."""
    from sia_layers import photo

    if path is None:
        with _refusing(ImportError, advice='name a PHOTO, or pip install "sia-layers[demo]"'):
            return photo.example()
    if path.exists() and output.exists() and output.samefile(path):
        raise Refusal(f"{output} is the photograph itself; choose another name with -o")
    with _refusing(photo.PhotoError):
        return photo.read(path)


def _caption(photo: Photo, options: Options) -> str:
    """The size and the options in one line."""
    parts = [f"{photo.width} × {photo.height} pixels", f"window {options.kernel_size} × {options.kernel_size}"]
    parts.append(f"{options.estimator}, bandwidth {options.bandwidth:g}{' adaptive' if options.adaptive else ''}")
    others = options.neighbours(len(photo.channels))
    if others:
        parts.append(f"{others} other channel{'s' if others > 1 else ''} × {options.inter_weight:g}")
    return " · ".join([*parts, f"borders: {options.padding_mode}"])


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


def _info(given: argparse.Namespace) -> None:
    print(f"python       {platform.python_version()} on {platform.platform()}")
    for package in ("sia-layers", "torch", "triton", "timm", "torchvision", "pillow", "matplotlib", "scikit-image"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            print(f"{package:13}{importlib.metadata.version(package)}")
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    print(f"{'cpu':13}{os.cpu_count()} cores, {capability}; torch uses {threads} threads")
    for index in range(torch.cuda.device_count()):
        print(f"{f'cuda:{index}':13}{torch.cuda.get_device_name(index)}")
    print()
    for backend in backends.BACKENDS:
        reason = backends.unavailable(backend)
        print(f"{backend:13}{'available' if reason is None else f'not available: {reason}'}")
    if backends.unavailable("cpu") is None:
        with _refusing(ValueError):
            print(f"{'':13}the cpu backend computes with {library.LEVELS[library.level()]}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(f"\nfor a float32 map on {device}")
        print(backends.explain_backend(torch.empty(1, 3, 8, 8, device=device)))


@contextlib.contextmanager
def _refusing(*expected: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn the errors that a user can mend into one line."""
    try:
        yield
    except expected as error:
        line = str(error).partition("\n")[0]
        raise Refusal(f"{line}; {advice}" if advice else line) from error


if __name__ == "__main__":
    sys.exit(main())
