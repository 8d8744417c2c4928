"""Inject SIA into every model of a library, on meta tensors, and record the outcome.

``python -m benchmarks.zoo [--library NAME] [--pattern GLOB] [--jobs N]`` writes one line per model to docs/coverage.csv
and a table by family to docs/coverage.md. Models that are already in the CSV are skipped unless they failed, so an
interrupted run resumes where it stopped. ``--fresh`` starts over.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_libraries import LIBRARIES, make, models
from sia_layers.injection import InjectionError, eject_sia, find_sites, inject_sia, sia_modules
from sia_layers.injection.families import entry
from sia_layers.injection.inputs import inputs_for

FIELDS = (
    "library",
    "model",
    "family",
    "outcome",
    "sites",
    "layout",
    "channels",
    "reductions",
    "hosts",
    "reason",
    "seconds",
)
SECONDS = 300  # a model that takes longer counts as failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the models; the exit code is 0 if each was injected or refused with a reason."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("--library", choices=LIBRARIES, default="timm")
    parser.add_argument("--pattern", default="*", metavar="GLOB", help="pattern of model names (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/coverage.csv"), metavar="FILE")
    parser.add_argument("--fresh", action="store_true", help="repeat models that the file already contains")
    given = parser.parse_args(arguments)
    rows = read(given.output)
    names = [name for name in models(given.library) if fnmatch.fnmatchcase(name, given.pattern)]
    settled = {key for key, row in rows.items() if row["outcome"] != "failed" and not given.fresh}
    todo = [name for name in names if (given.library, name) not in settled]
    started = time.monotonic()
    for number, row in enumerate(_walked([(given.library, name) for name in todo], given.jobs), 1):
        rows[row["library"], row["model"]] = row
        write(given.output, rows.values())
        left = (time.monotonic() - started) / number * (len(todo) - number)
        progress = f"{number}/{len(todo)} {row['outcome']:8} {row['model']} (about {left / 60:.0f} min left)"
        live = sys.stderr.isatty()
        print(f"\r\033[K{progress}" if live else progress, end="" if live else "\n", file=sys.stderr, flush=True)
    table = by_family(rows.values())
    given.output.with_suffix(".md").write_text(table)
    print(f"\n{table}")
    return int(any(row["outcome"] == "failed" for row in rows.values()))


def examine(job: tuple[str, str]) -> dict[str, Any]:
    """Inject into one model and eject again, and check everything that needs no numbers."""
    library, name = job
    row: dict[str, Any] = {**dict.fromkeys(FIELDS, ""), "library": library, "model": name, "outcome": "failed"}
    started = time.monotonic()
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(SECONDS)
    try:
        model = make(library, name)
        row["family"] = type(model).__module__.rpartition(".")[2]
        if library == "transformers":  # its models add their own hooks in their first forward pass
            with contextlib.suppress(Exception):  # a model that needs more than pictures is refused below
                _run(model)
        before = _shape_of(model)
        try:
            sites = find_sites(model)
        except InjectionError as refusal:
            row["outcome"], row["reason"] = "refused", f"{type(refusal).__name__}: {refusal}"
            _require(_shape_of(model) == before, "a refusal changed the model")
            return row
        row["sites"], row["layout"] = len(sites), " ".join(dict.fromkeys(site.layout.kind for site in sites))
        row["channels"] = " ".join(str(site.channels) for site in sites)
        row["reductions"] = " ".join(str(site.reduction) for site in sites)
        row["hosts"] = " ".join(site.host for site in sites)
        _require(inject_sia(model) is model, "inject_sia returned another model")
        _check_injected(model, [site.name for site in sites], before[0])
        eject_sia(model)
        _require(_shape_of(model) == before, "eject_sia left something behind")
        row["outcome"] = "injected"
    except Exception as error:
        lines = str(error).strip().splitlines()
        row["reason"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        row["seconds"] = f"{time.monotonic() - started:.1f}"
    return row


def _check_injected(model: nn.Module, names: list[str], keys: list[str]) -> None:
    """Check that keys and their order are kept, each site runs once, and every new parameter gets a gradient."""
    _require([key for key in model.state_dict() if not _is_new(key)] == keys, "the base keys changed")
    _require(sorted(sia_modules(model)) == sorted(names), "sia_modules are not the sites")
    counts = dict.fromkeys(names, 0)

    def counted(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    handles = [module.register_forward_hook(counted(name)) for name, module in sia_modules(model).items()]
    try:
        output = _run(model)
    finally:
        for handle in handles:
            handle.remove()
    _require(set(counts.values()) == {1}, f"sites ran {counts} times")
    parameters = [(key, parameter) for key, parameter in model.named_parameters() if _is_new(key)]
    total = torch.stack([tensor.sum() for tensor in _tensors(output) if tensor.requires_grad]).sum()
    grads = torch.autograd.grad(total, [parameter for _, parameter in parameters], allow_unused=True)
    missed = [key for (key, _), grad in zip(parameters, grads, strict=True) if grad is None]
    _require(not missed, f"no gradient reaches {missed[:2]}")


def _run(model: nn.Module) -> Any:
    """Run the model in evaluation mode on an input that it declares."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        inputs = inputs_for(model)
        return model.get_submodule(entry(model))(*inputs.args, **inputs.kwargs)
    finally:
        for module, training in modes:
            module.training = training


def _is_new(key: str) -> bool:
    return "sia" in key.split(".")


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _shape_of(model: nn.Module) -> tuple[list[str], list[tuple[str, str, int, int, bool]]]:
    """Return everything that injection might disturb: keys, modules, numbers of hooks, and training modes."""
    modules = [
        (name, type(module).__name__, len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in model.named_modules()
    ]
    return list(model.state_dict()), modules


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def _walked(jobs: list[tuple[str, str]], processes: int) -> Iterable[dict[str, Any]]:
    if processes == 1:
        yield from map(examine, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=50) as pool:
        yield from pool.imap_unordered(examine, jobs)


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of a coverage file by library and model; an empty dict if the file does not exist."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {(row["library"], row["model"]): row for row in csv.DictReader(file)}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows, completely or not at all."""
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["library"], row["model"])))
    part.replace(path)


def by_family(rows: Iterable[dict[str, Any]]) -> str:
    """Format a Markdown table with each family's number of models, outcomes, layouts and reason for a refusal."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["library"], row["family"]), []).append(row)
    everything = [row for members in families.values() for row in members]
    lines = [
        "# Coverage of the model zoo",
        "",
        *(
            f"{library}: {_count(members, 'injected')} of {len(members)} models injected, "
            f"{_count(members, 'refused')} refused, {_count(members, 'failed')} failed.\n"
            for library in sorted({row["library"] for row in everything})
            for members in [[row for row in everything if row["library"] == library]]
        ),
        "| library | family | models | injected | refused | failed | layout | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (library, family), members in sorted(families.items()):
        layouts = " ".join(sorted({row["layout"] for row in members if row["layout"]}))
        reasons = sorted({row["reason"] for row in members if row["reason"]})
        counts = " | ".join(str(_count(members, outcome)) for outcome in ("injected", "refused", "failed"))
        reason = (reasons[0] if reasons else "").replace("|", "\\|")
        lines.append(f"| {library} | {family} | {len(members)} | {counts} | {layouts} | {reason} |")
    return "\n".join(lines) + "\n"


def _count(rows: Iterable[dict[str, Any]], outcome: str) -> int:
    return sum(row["outcome"] == outcome for row in rows)


if __name__ == "__main__":
    sys.exit(main())
