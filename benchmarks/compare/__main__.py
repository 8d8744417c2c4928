"""Train a model bare and with attention on your own pictures, with the same budget, and report the difference.

``python -m benchmarks.compare --data FOLDER --model NAME [--variants sia,se] [--seeds 5]``. The folder contains
``real`` and ``fake``, or ``train`` and ``test`` with these two inside; see docs/compare.md. If a call is interrupted,
the same call resumes it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.timing import bar_interval
from sia_layers.cli.common import Refusal
from sia_layers.injection import InjectionError

EXTRA: Final = "pip install 'sia-layers[reproduction]'"

try:
    from benchmarks.compare import models, runs, table
    from benchmarks.compare.variants import VARIANTS, chosen
    from benchmarks.reproduction import data
except ModuleNotFoundError as error:
    raise SystemExit(f"the package {error.name} is missing; {EXTRA}") from None

PRECISIONS: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Budget(NamedTuple):
    """The budget, as far as the command line does not set it.

    Attributes:
        seeds: runs of every variant.
        epochs: epochs per run.
        batch: pictures per step.
        groups: about how many groups of pictures to use; None for all.
    """

    seeds: int
    epochs: int
    batch: int
    groups: int | None


FULL: Final = Budget(seeds=5, epochs=20, batch=32, groups=None)
QUICK: Final = Budget(seeds=2, epochs=2, batch=16, groups=60)
QUICK_SIZE: Final = 64  # pixels; the largest size with --quick


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 0 on success, 2 if a request is invalid and 130 if interrupted."""
    parser = _parser()
    given = _with_budget(parser.parse_args(arguments))
    try:
        variants = chosen(given.variants)
        native = models.native_size(given.model)
        size = (min(native, QUICK_SIZE) if given.quick else native) if given.size is None else given.size
        config, place = _config(given, size), _place(given)
        start = runs.Start(given.checkpoint, given.pretrained)
        for variant in variants:  # refuse an impossible variant before anything is discarded or trained
            models.make(given.model, variant, size, 0, *start)
        if given.fresh:
            _forget(given.out)
        store = runs.Store(given.out, config)
        _run_missing(store, variants, range(given.seeds), start, place, given)
    except KeyboardInterrupt:
        print(
            f"\nstopped; the same command{' without --fresh' if given.fresh else ''} resumes from here", file=sys.stderr
        )
        return 130
    except (OSError, ValueError, FloatingPointError, InjectionError, Refusal) as error:
        parser.error(str(error))
    _report(store, variants, range(given.seeds), given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="your pictures: real/ and fake/, or a split of them")
    add("--model", required=True, metavar="NAME", help="a timm model")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to start from (random ones)")
    weights.add_argument("--pretrained", action="store_true", help="start from timm's weights, downloaded if necessary")
    add("--variants", default="bare,se,cbam,sia", metavar="A,B", help=f"some of {', '.join(VARIANTS)} (%(default)s)")
    add("--seeds", type=int, metavar="N", help=f"runs of every variant ({FULL.seeds})")
    add("--epochs", type=int, metavar="N", help=f"passes over the real pictures ({FULL.epochs})")
    add("--batch", type=int, metavar="N", help=f"pictures per step ({FULL.batch})")
    add("--size", type=int, metavar="N", help="side of the pictures in pixels (what the model declares)")
    add("--lr", type=float, default=1e-3, help="highest learning rate of AdamW (%(default)s)")
    add("--gain-rate", type=float, default=10.0, help="learning rate of SIA's gains relative to --lr (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="weight decay, not for biases and norms (%(default)s)")
    add(
        "--ema",
        type=float,
        default=0.99,
        help="decay of the averaged weights, which are tested; 0 for none (%(default)s)",
    )
    add("--quality", choices=data.QUALITIES, default="HQ", help="JPEG quality applied to all pictures (%(default)s)")
    add("--groups", type=int, metavar="N", help="about how many groups of pictures to use (all)")
    add("--dataset", choices=data.SOURCES, default="folder", help="kind of data set in the folder (%(default)s)")
    add("--device", help="device, as torch names it (cuda if available)")
    add(
        "--precision",
        choices=PRECISIONS,
        help="precision of training (bfloat16 or float16 on a GPU, else float32)",
    )
    add("--out", type=Path, default=Path(".compare"), metavar="FOLDER", help="folder for all output (%(default)s)")
    add("--quick", action="store_true", help="a small budget, to check that everything runs")
    add("--fresh", action="store_true", help="discard earlier runs in --out")
    return parser


def _with_budget(given: argparse.Namespace) -> argparse.Namespace:
    """Set the options that were omitted to the values of the budget."""
    budget = QUICK if given.quick else FULL
    for name in ("seeds", "epochs", "batch", "groups"):
        if getattr(given, name) is None:
            setattr(given, name, getattr(budget, name))
    return given


def _config(given: argparse.Namespace, size: int) -> runs.Config:
    least = {"seeds": 1, "epochs": 1, "batch": 2, "size": 16, "groups": 2 * len(data.Parts._fields)}
    for name, bound in least.items():
        value = getattr(given, name)
        if value is not None and value < bound:
            raise ValueError(f"--{name} must be {bound} or more, got {value}")
    if given.out.exists() and not given.out.is_dir():
        raise ValueError(f"--out {given.out} is a file; name a folder")
    if not given.lr > 0 or not given.gain_rate > 0 or given.weight_decay < 0 or not 0 <= given.ema < 1:
        raise ValueError(
            "--lr and --gain-rate must be above 0, --weight-decay 0 or more and --ema from 0 to below 1, got "
            f"{given.lr}, {given.gain_rate}, {given.weight_decay} and {given.ema}"
        )
    weights = "pretrained" if given.pretrained else "random"
    if given.checkpoint is not None:
        weights = hashlib.sha256(given.checkpoint.read_bytes()).hexdigest()[:16]
    return runs.Config(
        model=given.model,
        weights=weights,
        dataset=given.dataset,
        data=data.fingerprint_of(given.dataset, given.data, given.quality),
        quality=given.quality,
        groups=given.groups,
        size=size,
        epochs=given.epochs,
        batch=given.batch,
        learning_rate=given.lr,
        gain_rate=given.gain_rate,
        weight_decay=given.weight_decay,
        ema=given.ema,
        precision=str(_place(given).dtype).removeprefix("torch."),
    )


def _place(given: argparse.Namespace) -> runs.Place:
    try:
        device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # without CUDA, torch asserts that it was compiled with it
        raise ValueError(f"--device {given.device}: {str(error).partition(chr(10))[0]}") from None
    if given.precision is not None:
        return runs.Place(device, PRECISIONS[given.precision])
    if device.type != "cuda":
        return runs.Place(device, torch.float32)
    return runs.Place(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def _forget(out: Path) -> None:
    """Delete the runs in a folder, and what was written from them."""
    for path in (
        *(out / name for name in (runs.RUNS, runs.CURVES, runs.CHECKPOINT, table.TABLE, table.PICTURE)),
        *(out / "predictions").glob("*.csv"),
    ):
        path.unlink(missing_ok=True)


def _run_missing(
    store: runs.Store, variants: Sequence[str], seeds: Sequence[int], start: runs.Start, place: runs.Place,
    given: argparse.Namespace,
) -> None:  # fmt: skip
    """Make all missing runs, seed by seed, so that variants can be compared early."""
    todo = {seed: [variant for variant in variants if not store.has(variant, seed)] for seed in seeds}
    todo = {seed: missing for seed, missing in todo.items() if missing}
    if not todo:
        return
    config, bar = store.config, None
    for number, (seed, missing) in enumerate(todo.items()):
        parts = data.load(
            config.dataset, given.data, size=config.size, quality=config.quality, seed=seed, people=config.groups,
            cache=None if config.dataset == "folder" else given.out / "pictures",
        )  # fmt: skip
        if bar is None:
            print(_about(parts, seed, store, place))
            total = sum(map(len, todo.values())) * runs.pictures_of(parts.train, config)
            bar = tqdm(total=total, unit="picture", dynamic_ncols=True, mininterval=bar_interval())
        for variant in missing:
            bar.set_description(f"{variant}, seed {seed} ({number + 1} of {len(todo)} seeds)")
            runs.train(store, variant, seed, parts, start, place, bar)
    if bar is not None:
        bar.close()


def _about(parts: data.Parts, seed: int, store: runs.Store, place: runs.Place) -> str:
    counts = ", ".join(
        f"{name} {len(part)} pictures of {len(set(part.people))} groups" for name, part in parts._asdict().items()
    )
    config = store.config
    return (
        f"{config.model}, {config.weights} weights, {config.size} px, {config.epochs} epochs; {place.device}, "
        f"{config.precision}, {torch.get_num_threads()} threads\n{counts} (with seed {seed})"
    )


def _report(store: runs.Store, variants: Sequence[str], seeds: Sequence[int], given: argparse.Namespace) -> None:
    made = table.lines(store, variants, seeds)
    print(f"\n{table.show(made)}\n")
    print("in percent, mean over seeds [95% interval over groups of pictures and seeds]; differences are paired")
    for path in (store.folder / runs.RUNS, *table.write(store, made)):
        print(f"written: {path}")
    for warning in table.warnings(store, made[0], seeds):
        print(f"\n{warning}")
    if given.quick:
        print("\n--quick only checks that everything runs: its figures mean nothing.")
    spoken = table.headline(variants)
    if spoken is not None:
        print(f"\n{table.sentence(next(line for line in made if line.variant == spoken), len(seeds))}")


if __name__ == "__main__":
    sys.exit(main())
