"""Reading photographs of every kind, and drawing them with their self-information."""

from __future__ import annotations

import struct
import sys
import tempfile
import types
import warnings
import zlib
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sia_layers.kernels import reference
from sia_layers.kernels.options import Options

pytest.importorskip("matplotlib")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402
from PIL import ImageFile, features  # noqa: E402

from sia_layers import photo as reading  # noqa: E402
from sia_layers import visualize  # noqa: E402
from sia_layers.photo import Photo, PhotoError  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Reading.


def saved(image: Image.Image, name: str, **options: object) -> Photo:
    image.save(name, **options)
    return reading.read(name)


VALUES = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
UPRIGHT = {
    1: VALUES,
    2: VALUES[:, ::-1],
    3: VALUES[::-1, ::-1],
    4: VALUES[::-1],
    5: VALUES.swapaxes(0, 1),
    6: np.rot90(VALUES, -1),
    7: np.rot90(VALUES, 2).swapaxes(0, 1),
    8: np.rot90(VALUES),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_honoured(orientation: int, folder: Path) -> None:
    image = Image.fromarray(VALUES)
    exif = image.getexif()
    exif[0x0112] = orientation
    photo = saved(image, "turned.png", exif=exif)
    expected = torch.from_numpy(UPRIGHT[orientation].copy()).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(photo.pixels, expected)
    assert (photo.height, photo.width) == UPRIGHT[orientation].shape[:2]


def test_grey_stays_one_channel(folder: Path) -> None:
    photo = saved(Image.fromarray(VALUES[..., 0]), "grey.png")
    assert photo.channels == ("grey",)
    assert torch.equal(photo.pixels, torch.from_numpy(VALUES[..., 0].copy())[None, None].float() / 255)
    photo = saved(Image.fromarray(VALUES[..., 0] > 100), "bits.png")
    assert torch.equal(photo.pixels, torch.from_numpy(VALUES[..., 0] > 100)[None, None].float())


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_kept(name: str, folder: Path) -> None:
    values = np.array([[0, 1, 2], [256, 65534, 65535]], dtype=np.uint16)
    photo = saved(Image.fromarray(values), name)
    assert torch.equal(photo.pixels, torch.from_numpy(values / 65535)[None, None].float())


def png(values: np.ndarray, colours: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a 16-bit PNG by the standard; grey is 0, grey with alpha 4."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colours, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_sixteen_bits_are_kept_beside_alpha(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 2), dtype=np.uint16)
    values[0, :3] = [[258, 65535], [258, 0], [513, 65535]]
    Path("deep.png").write_bytes(png(values, 4))
    photo = reading.read("deep.png")
    grey, alpha = np.moveaxis(values / 65535, 2, 0)
    assert photo.channels == ("grey",)
    assert torch.equal(photo.pixels, torch.from_numpy(grey * alpha + 1 - alpha)[None, None].float())
    assert photo.pixels[0, 0, 0, :3].tolist() == pytest.approx([258 / 65535, 1, 513 / 65535])
    exif = Image.Exif()
    exif[0x0112] = 6
    Path("turned.png").write_bytes(png(values, 4, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert torch.equal(reading.read("turned.png").pixels, photo.pixels.rot90(-1, (2, 3)))


def test_a_transparent_level_of_sixteen_bits_is_white(folder: Path) -> None:
    values = np.array([[0, 4660, 4661]], dtype=np.uint16)
    Path("deep.png").write_bytes(png(values, 0, (b"tRNS", struct.pack(">H", 4660))))
    assert torch.equal(reading.read("deep.png").pixels, torch.tensor([[[[0, 65535, 4661]]]]) / 65535)


# Invalid EXIF in little-endian TIFF, as cameras write it: a header, and entries of 12 bytes.


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def entries(*found: bytes) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(found)) + b"".join(found) + b"\0" * 4


SENSELESS = {
    "empty": b"Exif\0\0",
    "no TIFF": b"Exif\0\0garbage",
    "no header": b"garbage",
    "offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "truncated": entries(entry(0x0112, 3, 1, b"\6"))[:-12],
    "orientation 0": entries(entry(0x0112, 3, 1, b"\0")),
    "orientation 9": entries(entry(0x0112, 3, 1, b"\x09")),
    "text": entries(entry(0x0112, 2, 2, b"a")),
    "unknown kind": entries(entry(0x0112, 99, 1, b"\6")),
    "none": entries(entry(0x0112, 3, 0, b"")),
    "ratio over 0": entries(entry(0x0112, 5, 1, b"\x08")),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("case", SENSELESS)
def test_invalid_exif_rotates_nothing(case: str, suffix: str, folder: Path) -> None:
    image = Image.fromarray(VALUES)
    plain = saved(image, f"plain.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = saved(image, f"senseless.{suffix}", exif=SENSELESS[case])
    assert torch.equal(photo.pixels, plain.pixels)


@given(st.binary(max_size=80), st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", entries(b"")[:14]]))
def test_exif_never_causes_a_refusal(content: bytes, head: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = saved(Image.fromarray(VALUES), f"{folder}/any.png", exif=head + content)
    ways = [torch.from_numpy(turned.copy()).permute(2, 0, 1)[None] / 255 for turned in UPRIGHT.values()]
    assert any(torch.equal(photo.pixels, way) for way in ways)


def test_a_turn_beside_damaged_exif_is_honoured(folder: Path) -> None:
    exif = entries(entry(0x0112, 3, 1, b"\6"), entry(0x8769, 4, 1, b"\xff\xff\xff"), entry(0x829A, 5, 1, b"\xff\xff"))
    photo = saved(Image.fromarray(VALUES), "turned.png", exif=exif)
    assert torch.equal(photo.pixels, torch.from_numpy(UPRIGHT[6].copy()).permute(2, 0, 1)[None] / 255)


# Formats that need plugins.


def brands(*names: bytes) -> bytes:
    """Return the start of an ISO media file that names these brands."""
    content = names[0] + b"\0" * 4 + b"".join(names[1:])
    return struct.pack(">I", len(content) + 8) + b"ftyp" + content + b"\0" * 40


FAMILIES = {
    "heic": (brands(b"heic", b"mif1", b"heic"), "pillow_heif", "is HEIC, .* pip install pillow-heif$"),
    "mif1": (brands(b"mif1", b"heix"), "pillow_heif", "is HEIC, .* pip install pillow-heif$"),
    "avif": (brands(b"mif1", b"miaf", b"avif"), "pillow_avif", "is AVIF, .* pip install pillow-avif-plugin$"),
}


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove AVIF, which only some builds read, from Pillow's formats, and restore them afterwards."""
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("AVIF", "HEIF")])
    for name in ("AVIF", "HEIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("formats")
def test_a_plugin_that_is_not_installed_is_named(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, plugin, message = FAMILIES[family]
    monkeypatch.setitem(sys.modules, plugin, None)
    Path("photo.bin").write_bytes(content)
    with pytest.raises(PhotoError, match=message):
        reading.read("photo.bin")
    Path("video.heic").write_bytes(brands(b"isom", b"mp42"))
    with pytest.raises(PhotoError, match="is not an image that Pillow can read"):
        reading.read("video.heic")


@pytest.mark.usefixtures("formats")
def test_a_plugin_is_registered_when_a_file_needs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode, self.tile = (4, 2), "L", [("raw", (0, 0, 4, 2), 40, ("L", 0, 1))]

    def register() -> None:
        registered.append(1)
        Image.register_open("HEIF", Decoder, lambda head: head[4:8] == b"ftyp")

    registered: list[int] = []
    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    Path("photo.heic").write_bytes(brands(b"heic"))
    saved(Image.fromarray(VALUES), "photo.png")
    assert not registered
    for _ in range(2):
        assert reading.read("photo.heic").pixels.shape == (1, 1, 2, 4)
    assert registered == [1]


def test_heic(folder: Path) -> None:
    plugin = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.kron(VALUES, np.ones((16, 16, 1), dtype=np.uint8)))
    plugin.from_pillow(image).save("photo.heic", quality=-1)
    photo = reading.read("photo.heic")
    assert (photo.pixels - saved(image, "photo.png").pixels).abs().max() < 0.02


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(folder: Path) -> None:
    image = Image.fromarray(np.kron(VALUES, np.ones((16, 16, 1), dtype=np.uint8)))
    assert (saved(image, "photo.avif", quality=100).pixels - saved(image, "photo.png").pixels).abs().max() < 0.03


def test_wide_values_are_scaled_by_their_extremes(folder: Path) -> None:
    values = np.array([[-1.0, 0.0, 3.0], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    photo = saved(Image.fromarray(values), "float.tif")
    assert torch.equal(photo.pixels, torch.tensor([[[[0, 0.25, 1], [0, 1, 0]]]]))
    photo = saved(Image.fromarray(np.full((2, 3), 70000, dtype=np.int32)), "int.tif")
    assert torch.equal(photo.pixels, torch.zeros(1, 1, 2, 3))


def test_transparency_is_composited_over_white(folder: Path) -> None:
    values = np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    photo = saved(Image.fromarray(values), "clear.png")
    expected = torch.tensor([[200, 0, 100], [255, 255, 255], [204, 204, 204]]).T.reshape(1, 3, 1, 3) / 255
    assert torch.equal(photo.pixels, expected)
    photo = saved(Image.fromarray(np.array([[[40, 255], [40, 0]]], dtype=np.uint8), "LA"), "clear_grey.png")
    assert torch.equal(photo.pixels, torch.tensor([[[[40, 255]]]]) / 255)


def test_palette_becomes_colour(folder: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for place in range(3):
        image.putpixel((place, 0), place)
    assert torch.equal(saved(image, "palette.png").pixels, torch.eye(3)[None, :, None])
    photo = saved(image, "clear_palette.gif", transparency=1)
    expected = torch.eye(3)
    expected[:, 1] = 1
    assert torch.equal(photo.pixels, expected[None, :, None])


def test_animation_gives_its_first_frame(folder: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    photo = saved(frames[0], "moving.png", save_all=True, append_images=frames[1:])
    assert photo.pixels.amax((2, 3)).tolist() == [[1, 0, 0]]


def test_other_colour_spaces_become_colour(folder: Path) -> None:
    photo = saved(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "print.tif")
    assert torch.equal(photo.pixels, torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 3, 4))


# Drawing.

SIZES = {
    "square": (60, 60),
    "portrait": (60, 40),
    "landscape": (30, 59),
    "tower": (200, 20),
    "panorama": (20, 90),
    "line": (1, 300),
    "pixel": (1, 1),
    "flat": (10, 10),
}


@pytest.fixture(params=SIZES, scope="module")
def drawn(request: pytest.FixtureRequest) -> tuple[Photo, torch.Tensor, Figure]:
    """Return a photo of each shape, its self-information, and the figure of both."""
    channels = 1 if request.param == "landscape" else 3
    height, width = SIZES[request.param]
    pixels = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0)) ** 3
    if request.param == "flat":
        pixels = torch.full_like(pixels, 0.5)
    photo = Photo("a name that goes on and on, as those of photographs do.jpeg", pixels)
    info, _ = reference.self_information(photo.pixels, Options())
    return photo, info, visualize.draw(photo, info, "what was computed, and how, in some words more than fit " * 4)


def test_panels_show_the_photo_and_the_map(drawn: tuple[Photo, torch.Tensor, Figure]) -> None:
    photo, info, figure = drawn
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["Photo", "Self-information", "nats", "Overlay", "Distribution"]
    shown = np.asarray(panels["Photo"].images[0].get_array())
    assert shown.reshape(photo.height, photo.width, -1) == pytest.approx(photo.pixels[0].permute(1, 2, 0).numpy())
    heat = panels["Self-information"].images[0]
    assert np.asarray(heat.get_array()) == pytest.approx(info.mean(1)[0].numpy())
    low, high = heat.get_clim()
    assert low == 0
    assert 0 < high <= max(1, info.mean(1).max().item())
    assert sum(bar.get_height() for bar in panels["Distribution"].patches if hasattr(bar, "get_height")) == (
        pytest.approx(100)
    )
    for name in ("Photo", "Self-information", "Overlay"):
        panels[name].apply_aspect()
        box = panels[name].get_window_extent()
        assert box.width / box.height == pytest.approx(photo.width / photo.height, rel=1e-6)


def test_labels_stay_apart_and_on_the_page(drawn: tuple[Photo, torch.Tensor, Figure]) -> None:
    figure = drawn[2]
    figure.canvas.draw()
    page = Bbox.from_bounds(0, 0, *figure.get_size_inches() * figure.dpi)
    boxes = {text: box for text, box in labels(figure).items() if box.width > 0}
    assert len(boxes) > 12
    for text, box in boxes.items():
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, text
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, text
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        assert not one.overlaps(other), (first, second)
    pictures = [axes for axes in figure.axes if axes.images]
    for (text, box), axes in ((item, axes) for item in boxes.items() for axes in pictures):
        assert not box.padded(-1).overlaps(axes.get_window_extent()), (text, axes.get_title(loc="left"))


def labels(figure: Figure) -> dict[str, Bbox]:
    """Return the extent of every text in a figure."""
    texts = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        legend = axes.get_legend()
        texts += legend.get_texts() if legend else []
    seen = [text for text in texts if text.get_visible() and text.get_text()]
    return {f"{number} {text.get_text()}": text.get_window_extent() for number, text in enumerate(seen)}


def test_large_photos_are_drawn_smaller() -> None:
    photo = Photo("large", torch.rand(1, 1, 3, 2 * visualize.MOST_PIXELS))
    figure = visualize.draw(photo, torch.ones_like(photo.pixels))
    heat = figure.axes[1].images[0].get_array()
    assert heat.shape == (2, visualize.MOST_PIXELS)
    assert np.asarray(heat) == pytest.approx(1)
