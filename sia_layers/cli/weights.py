"""Read files of weights without running any code that they name."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from sia_layers.cli.common import Refusal, refusing


class Inert:
    """The stand-in for an object in a checkpoint that is not a tensor: it keeps nothing and runs nothing."""

    def __new__(cls, *arguments: Any) -> Inert:
        """Accept and ignore any arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Accept and ignore any state."""


class PlainDict:
    """The stand-in for a mapping other than dict: an OrderedDict, since it may hold the state dict."""

    def __new__(cls, *arguments: Any) -> Any:
        """Return an empty OrderedDict, which the unpickler fills."""
        return OrderedDict()


class PlainList:
    """The stand-in for a sequence other than list."""

    def __new__(cls, *arguments: Any) -> Any:
        """Return an empty list, which the unpickler fills."""
        return []


def _names() -> Iterator[tuple[type, str]]:
    """Yield the stand-in and the full name of each type that scripts are known to save beside their weights."""
    harmless = {
        "argparse": "Namespace",
        "builtins": "bool bytes dict float frozenset int list object range slice str tuple",
        "copyreg": "_reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",  # Python 3.13
        "types": "SimpleNamespace",
        "typing": "Any",
        "uuid": "SafeUUID UUID",
        "numpy": "bool bool_ dtype float16 float32 float64 int8 int16 int32 int64 ndarray uint8 uint16 uint32 uint64",
        "numpy._core.multiarray": "_reconstruct scalar",
        "numpy._core.numeric": "_frombuffer",
        "numpy.core.multiarray": "_reconstruct scalar",  # before NumPy 2
        "numpy.core.numeric": "_frombuffer",
        "omegaconf.base": "ContainerMetadata Metadata",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode",
        "torch.torch_version": "TorchVersion",
    }
    yield from ((Inert, f"{module}.{name}") for module, names in harmless.items() for name in names.split())
    mappings = ["collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode"]
    for package in ("lightning.fabric.utilities.data", "lightning.pytorch.utilities.parsing"):
        mappings.append(f"{package}.AttributeDict")
    for package in ("lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing"):
        mappings.append(f"{package}.AttributeDict")
    yield from ((PlainDict, name) for name in mappings)
    yield PlainList, "collections.deque"


HARMLESS: Final = tuple(_names())
SHARD: Final = re.compile(r"-\d+-of-\d+\.")


def read_file(path: Path) -> dict[Any, Any]:
    """Read a file of weights; return it with its tensors and plain Python values, and Inert for any other object.

    Raises:
        Refusal: the file cannot be read, would run code, or is not a checkpoint.
    """
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "there is no such file"
        raise Refusal(f"cannot read {path}: {reason}{'; name the file of weights in it' if path.is_dir() else ''}")
    if path.name.endswith(".index.json") or SHARD.search(path.name):
        raise Refusal(
            f"{path} is one of several files that the weights are spread over; load them all, "
            "and save them as one with torch.save(model.state_dict(), ...)"
        )
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _safetensors(path: Path) -> dict[Any, Any]:
    with refusing(ImportError, advice="pip install safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    with refusing(OSError, SafetensorError, advice=f"{path} cannot be read"):
        return dict(load_file(path))


def _pickled(path: Path) -> dict[Any, Any]:
    try:
        with torch.serialization.safe_globals(list(HARMLESS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever torch.load warns about is refused below
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise Refusal(
                f"{path} is not loaded: it holds more than tensors, was not pickled by torch.save as it is by default, "
                "or is no checkpoint; save it again with torch.save(model.state_dict(), ...)"
            ) from error
        raise Refusal(
            f"{path} holds more than tensors: loading it would run {found[1]}, which may do anything, so it is not "
            "loaded; if you trust it, load it with torch.load(..., weights_only=False) and save the weights alone with "
            "torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # torch.load may raise anything for a file that is not a checkpoint
        if "TorchScript" in str(error):
            raise Refusal(
                f"{path} holds a TorchScript program; save the weights alone with torch.save(model.state_dict(), ...)"
            ) from error
        raise Refusal(f"cannot read {path}: {str(error).partition(chr(10))[0] or type(error).__name__}") from error
    if not isinstance(held, dict):
        raise Refusal(f"{path} holds a {type(held).__name__}, not a state dict")
    return held
