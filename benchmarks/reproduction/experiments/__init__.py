"""The experiments, one module each, and what the command line needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Final, NamedTuple

from benchmarks.reproduction.experiments import fig1, localise, table1, table3, table4, table5
from benchmarks.reproduction.study import Measurement, Pictures, Study
from benchmarks.reproduction.training import Settings


class Experiment(NamedTuple):
    """What an experiment needs, and what it makes of it.

    Attributes:
        pictures: the ways to make the pictures that it uses.
        settings: the runs that it trains, or shares with others.
        measurements: on trained networks.
        write: its tables, when all that is there.
        hindrance: why the data set that was prepared does not do for it, if so.
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
