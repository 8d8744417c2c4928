"""Shared parts of the commands: errors, the options of the self-information, and reading photographs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sia_layers.kernels import backends
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

if TYPE_CHECKING:
    from sia_layers.photo import Photo

DRAWING_ADVICE = 'install the drawing libraries: pip install "sia-layers[viz]"'


class Refusal(Exception):
    """Raised if a command cannot do what the user asked for; the message is one line."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


@contextlib.contextmanager
def refusing(*expected: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn errors that the user can fix into a :class:`Refusal` of one line."""
    try:
        yield
    except expected as error:
        line = str(error).partition("\n")[0]
        raise Refusal(f"{line}; {advice}" if advice else line) from error


def add_information(command: Parser, kernel_size: str) -> None:
    """Add the options of the self-information to a command.

    Args:
        command: the parser of the command.
        kernel_size: the default kernel size, in words.
    """
    default, add = Options(kernel_size=3), command.add_argument
    add("--kernel-size", type=int, metavar="K", help=f"side of the window in pixels, odd ({kernel_size})")
    add("--bandwidth", type=float, metavar="B", help=f"factor on the measured bandwidth ({default.bandwidth})")
    add(
        "--adaptive",
        action=argparse.BooleanOptionalAction,
        help="measure the bandwidth, or take --bandwidth in units of the map; white is 1 in a photograph (measured)",
    )
    add("--estimator", choices=ESTIMATORS, help=f"({default.estimator})")
    add(
        "--inter-channels",
        type=int,
        metavar="S",
        help=f"number of other channels to compare each channel with, if there are as many ({default.inter_channels})",
    )
    add("--inter-weight", type=float, metavar="W", help=f"weight of the inter-channel term ({default.inter_weight})")
    add("--padding-mode", choices=PADDING_MODES, help=f"what the window contains beyond the border "
        f"({default.padding_mode})")  # fmt: skip
    add("--backend", choices=backends.BACKENDS, help="backend that computes it (the best that can serve)")
    add("--device", default="cpu", metavar="D", help="torch device to compute on (%(default)s)")


def information(given: argparse.Namespace, kernel_size: int) -> Options:
    """Return the options that :func:`add_information` has parsed.

    Args:
        given: the parsed arguments.
        kernel_size: the default kernel size.
    """
    chosen: dict[str, Any] = {name: getattr(given, name) for name in named_information(given)}
    with refusing(ValueError, TypeError):
        return Options.checked(**{"kernel_size": kernel_size, **chosen})


def named_information(given: argparse.Namespace) -> list[str]:
    """Return the names of the options of the self-information that the command line names."""
    return [name for name in Options._fields if getattr(given, name) is not None]


def read_photo(path: Path | None, output: Path | None = None) -> Photo:
    """Read the photograph at a path, or the example if it is None.

    Raises:
        Refusal: it cannot be read, or is the output file itself.
    """
    with refusing(ImportError, advice=DRAWING_ADVICE):
        from sia_layers import photo

    if path is None:
        with refusing(ImportError, advice='name a PHOTO, or pip install "sia-layers[demo]"'):
            return photo.example()
    if output is not None and path.exists() and output.exists() and output.samefile(path):
        raise Refusal(f"{output} is the photograph itself; choose another name with -o")
    with refusing(photo.PhotoError):
        return photo.read(path)


def described(options: Options, channels: int) -> list[str]:
    """Describe the options in words, for a caption."""
    parts = [f"window {options.kernel_size} × {options.kernel_size}"]
    parts.append(f"{options.estimator}, bandwidth {options.bandwidth:g}{' adaptive' if options.adaptive else ''}")
    others = options.neighbours(channels)
    if others:
        parts.append(f"{others} other channel{'s' if others > 1 else ''} × {options.inter_weight:g}")
    return [*parts, f"borders: {options.padding_mode}"]
