"""The experiments, one per module, and the interface that the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Final, NamedTuple

from benchmarks.reproduction.experiments import fig1, localise, table1, table3, table4, table5
from benchmarks.reproduction.study import Measurement, Pictures, Study
from benchmarks.reproduction.training import Settings


class Experiment(NamedTuple):
    """An experiment: its requirements and its output.

    Attributes:
        pictures: function that returns the sets of pictures that it uses.
        settings: function that returns the runs that it trains or shares with others.
        measurements: function that returns its measurements on trained networks.
        write: function that writes its tables when all of these exist.
        hindrance: function that returns why the prepared data set is unsuitable, or None.
    """

    pictures: Callable[[Study], Iterable[Pictures]]
    settings: Callable[[Study], Iterable[Settings]]
    measurements: Callable[[Study], Iterable[Measurement]]
    write: Callable[[Study], None]
    hindrance: Callable[[Study], str | None] = lambda study: None


def _of(module: ModuleType) -> Experiment:
    return Experiment(module.pictures, module.settings, module.measurements, module.write)


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "table1": _of(table1),
    "table3": _of(table3),
    "table4": _of(table4),
    "table5": _of(table5),
    "fig1": _of(fig1),
    "localise": _of(localise)._replace(hindrance=localise.hindrance),
}
