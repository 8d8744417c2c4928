"""Checkpoints as training scripts write them: what is read, what is ignored, and what is refused."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import os
import pathlib
import pickle
import re
import sys
import types
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sia_layers import inject_sia
from sia_layers.cli import weights
from sia_layers.cli.checkpoint import PREFIXES, Checkpoint, fitting, inject_as_saved, load, own_names, read_checkpoints
from sia_layers.cli.common import Refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a checkpoint."""
    return tmp_path / "saved.pth"


class Backbone(nn.Module):
    """A small model, one of whose names starts like the prefixes of wrappers."""

    pretrained_cfg: ClassVar = {"input_size": (3, 16, 16)}

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.model(x))
        return y


def loaded(path: Path, model: nn.Module) -> Checkpoint:
    """Load a file as the commands do."""
    checkpoint = fitting(read_checkpoints(path), model)
    inject_as_saved(model, checkpoint)
    load(model, checkpoint)
    return checkpoint


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Tell whether a model has exactly these tensors."""
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def refused(path: Path, model: nn.Module) -> str:
    """Return the message for a file that is refused, and check that the model is unchanged."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(Refusal) as refusal:
        loaded(path, model)
    assert same(model, before)
    return str(refusal.value)


# Objects beside the weights.


def beside() -> dict[str, Any]:
    counts: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    counts["train"].append(3)
    return {
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), nested=argparse.Namespace(dtype=torch.bfloat16)),
        "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/d")],
        "config": types.SimpleNamespace(size=torch.Size([3, 4]), device=torch.device("cuda:1"), dtype=torch.float16),
        "history": (collections.OrderedDict(a=1), counts, collections.Counter("aab"), collections.deque([1, 2], 3)),
        "when": [dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc), dt.timedelta(1)],
        "days": {dt.date(2024, 2, 29), dt.date(2023, 1, 1)},
        "numbers": (decimal.Decimal("0.1"), fractions.Fraction(1, 3), 1 + 2j, 2**100, uuid.UUID(int=7), b"bytes"),
        "others": (frozenset({1}), {2}, range(3), slice(1, 2), bytearray(b"x"), None, True, float("nan")),
        "version": torch.__version__,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{}]},
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_harmless_objects_beside_the_weights(legacy: bool, file: Path) -> None:
    state = Backbone().state_dict()
    torch.save({**beside(), "state_dict": state}, file, _use_new_zipfile_serialization=not legacy)
    before = set(torch.serialization.get_safe_globals())
    assert str(loaded(file, model := Backbone())) == "weights of saved.pth (state_dict)"
    assert same(model, state)
    assert set(torch.serialization.get_safe_globals()) == before


def test_numpy_objects(file: Path) -> None:
    np = pytest.importorskip("numpy")
    state = Backbone().state_dict()
    things = [np.float64(0.5), np.float32(1), np.int64(3), np.bool_(True), np.dtype("int16"), np.uint8, np.arange(3)]
    contents = {"best": things, "rng": np.random.get_state(), "model": state}
    torch.save(contents, file, _use_new_zipfile_serialization=False)
    text = file.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")  # as before NumPy 2
    for content in (text, text.replace(b"cnumpy.core.", b"cnumpy._core.")):
        file.write_bytes(content)
        loaded(file, model := Backbone())
        assert same(model, state)


def test_a_state_dict_in_a_mapping_of_another_kind(file: Path) -> None:
    state = Backbone().state_dict()
    contents: collections.defaultdict[str, Any] = collections.defaultdict(dict)
    contents["net"] = collections.defaultdict(None, state)
    torch.save(contents, file)
    loaded(file, model := Backbone())
    assert same(model, state)


class DictConfig:
    """A stand-in for the class of OmegaConf, which need not be installed."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("not even what is known to be harmless is run")


def test_objects_of_libraries_that_are_not_installed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Backbone().state_dict()
    library = types.ModuleType("omegaconf.dictconfig")
    library.DictConfig = DictConfig  # type: ignore[attr-defined]
    made = DictConfig()
    made.rate = 0.1  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(DictConfig, "__module__", library.__name__)
        patched.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        patched.setitem(sys.modules, library.__name__, library)
        torch.save({"cfg": made, "params": state}, file)
        loaded(file, Backbone())
    loaded(file, model := Backbone())
    assert same(model, state)


class Evil:
    """An object that runs a given command when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (os.mkdir, ("taken",), f"{os.name if os.name == 'nt' else 'posix'}.mkdir"),
        (eval, ("open('taken', 'w')",), "eval"),
        (getattr, (Path, "touch"), "getattr"),
        (Backbone, (), f"{__name__}.Backbone"),
        (nn.Conv2d, (3, 3, 3), "torch.nn.modules.conv.Conv2d"),
    ],
)
def test_code_is_not_run(
    call: Callable[..., Any], arguments: tuple[Any, ...], name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    torch.save({"args": argparse.Namespace(hook=Evil(call, *arguments)), "state_dict": Backbone().state_dict()}, file)
    before = set(torch.serialization.get_safe_globals())
    message = refused(file, Backbone())
    assert f"loading it would run {name}, which" in message
    assert "torch.save(model.state_dict(), ...)" in message
    assert set(torch.serialization.get_safe_globals()) == before
    assert os.listdir() == [file.name]


def test_a_whole_model_is_refused_by_the_name_of_its_class(file: Path) -> None:
    torch.save(Backbone(), file)
    assert f"would run {__name__}.Backbone" in refused(file, Backbone())


def test_the_names_of_harmless_classes_are_correct() -> None:
    """A misspelt name would lead to a refusal where the real one occurs."""
    for _, name in weights.HARMLESS:
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] in ("argparse", "builtins", "datetime", "decimal", "torch", "types", "uuid"):
            assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda state, file: torch.save(state, file, pickle_protocol=4), "was not pickled by torch.save"),
        (lambda state, file: file.write_bytes(pickle.dumps(state)), "is not loaded: .* or is no checkpoint"),
        (lambda state, file: file.touch(), "cannot read .*saved.pth: EOFError"),
    ],
)
def test_files_that_are_not_checkpoints(
    save: Callable[[dict[str, Tensor], Path], None], message: str, file: Path
) -> None:
    save(Backbone().state_dict(), file)
    assert re.search(message, refused(file, Backbone()))


# The place of the weights.


@pytest.mark.parametrize(
    "within",
    [
        ("state_dict",), ("model",), ("model_state_dict",), ("model_ema",), ("state_dict_ema",), ("ema",), ("net",),
        ("network",), ("params",), ("weights",), ("generator",), ("state", "model", "module"), (),
    ],
    ids=".".join,
)  # fmt: skip
def test_places(within: tuple[str, ...], file: Path) -> None:
    state = Backbone().state_dict()
    contents: dict[str, Any] = dict(state)
    for key in reversed(within):
        contents = {
            "epoch": 3,
            "best": torch.tensor(0.9),
            key: contents,
            "optimizer": {"a": {"exp_avg": torch.ones(4)}},
        }
    torch.save(contents, file)
    assert loaded(file, model := Backbone()).within == within
    assert same(model, state)


def test_of_several_places_the_best_known_is_used(file: Path) -> None:
    raw, averaged = Backbone().state_dict(), Backbone().state_dict()
    torch.save({"model_ema": averaged, "discriminator": {"conv.weight": torch.ones(1)}, "state_dict": raw}, file)
    loaded(file, model := Backbone())
    assert same(model, raw)


def test_a_fitting_state_dict_counts_more_than_its_name(file: Path) -> None:
    state = Backbone().state_dict()
    torch.save({"model": nn.Linear(2, 2).state_dict(), "ema": {"module": state}}, file)
    assert loaded(file, model := Backbone()).within == ("ema", "module")
    assert same(model, state)


def test_a_dict_that_contains_itself(file: Path) -> None:
    contents: dict[str, Any] = {"state_dict": Backbone().state_dict()}
    contents["self"] = contents
    torch.save(contents, file)
    loaded(file, Backbone())


# Prefixes.

SEGMENTS = st.sampled_from(["conv", "model", "module", "net", "encoder", "backbone", "0", "weight"])
KEYS = st.sets(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12)


@given(KEYS, st.lists(st.sampled_from([*PREFIXES, "_orig_mod."]), max_size=5))
def test_prefixes_go_in_any_order_as_far_as_keys_fit(own: Collection[str], prefixes: list[str]) -> None:
    expected = {"".join(prefixes) + key: key for key in own}
    assert own_names(expected, own) == expected


WRAPS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "averaged": lambda state: {
        "n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}
    },
    "lightning": lambda state: {f"model.{key}": value for key, value in state.items()},
}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(WRAPS)), max_size=5))
def test_wrappers_in_any_order(wraps: list[str]) -> None:
    state = Backbone().state_dict()
    saved = state
    for wrap in wraps:
        saved = WRAPS[wrap](saved)
    checkpoint = fitting([Checkpoint(Path("a.pth"), (), saved)], model := Backbone())
    load(model, checkpoint)
    assert same(model, state)
    assert checkpoint.ignored == (("n_averaged",) if "averaged" in wraps else ())


def test_wrappers_of_torch(file: Path) -> None:
    inner = nn.DataParallel(Backbone())
    state = inner.module.state_dict()
    torch.save({"ema": WRAPS["compiled"](AveragedModel(inner).state_dict())}, file)
    assert str(loaded(file, model := Backbone())) == "weights of saved.pth (ema, without n_averaged)"
    assert same(model, state)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_parts_wrapped_in_place(wrapper: str, file: Path) -> None:
    state = Backbone().state_dict()
    torch.save({key.replace("model.0.", f"model.0.{wrapper}."): value for key, value in state.items()}, file)
    loaded(file, model := Backbone())
    assert same(model, state)


def test_foreign_tensors_are_refused(file: Path) -> None:
    state = {f"model.{key}": value for key, value in Backbone().state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}}, file)
    assert "has 'criterion.weight', which the model does not have" in refused(file, Backbone())


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_parts_of_weights_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    assert "one of several files that the weights are spread over" in refused(tmp_path / name, Backbone())


def test_folders_are_refused(tmp_path: Path) -> None:
    assert "it is not a file; name the file of weights in it" in refused(tmp_path, Backbone())


def test_weights_of_another_library_are_refused(file: Path) -> None:
    torch.save({"vit.embeddings.cls_token": torch.ones(1, 1, 8)}, file)
    assert "the weights of another model, or of the same model in another library: it has 'vit.emb" in refused(
        file, Backbone()
    )


def test_a_file_with_only_bookkeeping_is_refused(file: Path) -> None:
    torch.save({"module.n_averaged": torch.tensor(3)}, file)
    assert "lacks 'model.0.weight', which the model has" in refused(file, Backbone())


# SIA's parameters.


def injected() -> nn.Module:
    return inject_sia(Backbone(), ["model", "conv"])


def test_injection_with_the_saved_configuration(file: Path) -> None:
    torch.save(WRAPS["lightning"](WRAPS["compiled"](injected().state_dict())), file)
    loaded(file, model := Backbone())
    assert model.state_dict().keys() == injected().state_dict().keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ending", [".gain", ".fc1.weight", ".running_var"])
def test_parameters_that_were_never_initialised(ending: str, value: float, file: Path) -> None:
    state = injected().state_dict()
    name = next(key for key in state if ".sia." in key and key.endswith(ending))
    state[name].view(-1)[-1] = value
    torch.save(state, file)
    with pytest.raises(Refusal, match=f"{name}' with values that are not finite: .*reset_sia_parameters"):
        loaded(file, Backbone())


def test_keys_outside_sia_are_ignored(file: Path) -> None:
    state = Backbone().state_dict()
    state["conv.bias"][0] = float("nan")
    torch.save(state, file)
    loaded(file, Backbone())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_gains_of_both_shapes(shape: tuple[int, ...], file: Path) -> None:
    state = {
        key: torch.full(shape, 0.5) if key.endswith(".gain") else value
        for key, value in injected().state_dict().items()
    }
    torch.save(state, file)
    loaded(file, model := Backbone())
    gains = [value for key, value in model.state_dict().items() if key.endswith(".gain")]
    assert len(gains) == 2 and all(gain.item() == 0.5 for gain in gains)


def test_extra_state_of_modules_need_not_fit(file: Path) -> None:
    state = injected().state_dict()
    host = next(key for key in state if key.endswith(".sia.gain")).removesuffix(".gain")
    torch.save({**state, f"{host}._extra_state": torch.zeros(200, dtype=torch.uint8)}, file)
    loaded(file, model := Backbone())
    assert model.state_dict().keys() >= state.keys()
