"""What the commands share: how they refuse, the options of self-information, and reading photographs."""

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

DRAWING_ADVICE = 'install what draws: pip install "sia-layers[viz]"'


class Refusal(Exception):
    """What was asked for cannot be done; the message is one line for the user."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


@contextlib.contextmanager
def refusing(*expected: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn the errors that a user can mend into one line."""
    try:
        yield
    except expected as error:
        line = str(error).partition("\n")[0]
        raise Refusal(f"{line}; {advice}" if advice else line) from error


def add_information(command: Parser, kernel_size: str) -> None:
    """Add the options of self-information to a command; ``kernel_size`` says what it is if not given."""
    default, add = Options(kernel_size=3), command.add_argument
    add("--kernel-size", type=int, metavar="K", help=f"side of the window in pixels, odd ({kernel_size})")
    add("--bandwidth", type=float, default=default.bandwidth, metavar="B",
        help="factor on the bandwidth that is measured (%(default)s)")  # fmt: skip
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


def information(given: argparse.Namespace, kernel_size: int) -> Options:
    """The options that :func:`add_information` has read."""
    chosen: dict[str, Any] = {name: getattr(given, name) for name in Options._fields}
    if chosen["kernel_size"] is None:
        chosen["kernel_size"] = kernel_size
    with refusing(ValueError, TypeError):
        return Options.checked(**chosen)


def read_photo(path: Path | None, output: Path | None = None) -> Photo:
    """The photograph to work on, which must not be where the figure goes; the example without a path."""
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
    """The options in words, for a caption."""
    parts = [f"window {options.kernel_size} × {options.kernel_size}"]
    parts.append(f"{options.estimator}, bandwidth {options.bandwidth:g}{' adaptive' if options.adaptive else ''}")
    others = options.neighbours(channels)
    if others:
        parts.append(f"{others} other channel{'s' if others > 1 else ''} × {options.inter_weight:g}")
    return [*parts, f"borders: {options.padding_mode}"]
