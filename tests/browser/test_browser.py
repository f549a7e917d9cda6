"""The browser tests' own eyes: they must tell a figure from a gap."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.browser.png import pixels

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]


def page(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>t</title><main>{body}</main>")
    return path


@pytest.mark.parametrize(
    ("body", "visible"),
    [
        ('<svg width="200" height="100"><rect x="20" y="20" width="50" height="50"/></svg>', True),
        ('<svg width="200" height="100"></svg>', False),
        ('<svg width="200" height="100"><rect width="200" height="100" fill="#fff"/></svg>', False),
        ('<svg width="0" height="0"><rect width="50" height="50"/></svg>', False),
        ('<svg width="20" height="10"><rect width="10" height="10"/></svg>', False),
        ('<p hidden><svg width="200" height="100"><rect width="50" height="50"/></svg></p>', False),
    ],
    ids=["drawn", "empty", "white", "no-size", "tiny", "hidden"],
)
def test_figure_is_told_from_a_gap(offline_page: OpenPage, tmp_path: Path, body: str, visible: bool) -> None:
    (seen,) = offline_page(page(tmp_path, body)).pictures()
    assert seen.visible is visible


def test_ink_is_the_share_of_pixels(offline_page: OpenPage, tmp_path: Path) -> None:
    body = '<svg width="200" height="100" aria-label="half"><rect width="100" height="50"/></svg>'
    (seen,) = offline_page(page(tmp_path, body)).pictures()
    assert (seen.title, seen.width, seen.height, seen.colors) == ("half", 200, 100, 2)
    assert seen.ink == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "body",
    [
        '<img src="http://example.org/a.png">',
        "<script>fetch('https://example.org/')</script>",
        "<script>throw new Error('x')</script>",
        '<link rel="stylesheet" href="https://example.org/a.css">',
    ],
    ids=["image", "fetch", "error", "style"],
)
def test_wish_for_the_network_is_seen(offline_page: OpenPage, tmp_path: Path, body: str) -> None:
    opened = offline_page(page(tmp_path, body))
    opened.page.wait_for_load_state("load")
    assert opened.complaints


def test_quiet_page_has_no_complaints(offline_page: OpenPage, tmp_path: Path) -> None:
    body = '<p>text</p><a href="https://example.org/">link</a><script>document.title = "x"</script>'
    assert offline_page(page(tmp_path, body)).complaints == []


def encode(image: np.ndarray, kind: int) -> bytes:
    """Return `image` as a PNG whose lines all have the filter `kind`, by the specification's definition."""
    height, width, channels = image.shape
    wide = np.zeros((height + 1, width + 1, channels), np.int64)
    wide[1:, 1:] = image
    x, a, b, c = wide[1:, 1:], wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    p = a + b - c
    near = np.stack([abs(p - a), abs(p - b), abs(p - c)]).argmin(0)
    guess = [0 * x, a, b, (a + b) // 2, np.choose(near, [a, b, c])][kind]
    filtered = ((x - guess) & 0xFF).astype(np.uint8).reshape(height, -1)
    lines = np.hstack([np.full((height, 1), kind, np.uint8), filtered])

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines.tobytes()))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", range(5))
def test_png_filters(kind: int, channels: int) -> None:
    image = np.random.default_rng(kind).integers(0, 256, (7, 5, channels), np.uint8)
    assert np.array_equal(pixels(encode(image, kind)), image[:, :, :3])
