"""Crops as metadata: IPTC image regions and Adobe's crop settings, as other programs read them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageOps

from modeling_setcrop.image_reading import ImageFileError, open_image
from modeling_setcrop.images.embedding import EmbeddingError, with_xmp
from modeling_setcrop.integrations.crop_metadata import MetadataWriter, roles, write_copy, write_sidecar
from modeling_setcrop.integrations.formats import crop_rows

PARSER = "@frameright/image-display-control-metadata-parser"
needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool (libimage-exiftool-perl)")
SIZE = (1200, 812)
BOXES = [(100, 50, 700, 850), (100, 300, 700, 900), (0, 400, 812, 900)]


def rows_of(source: str, boxes=BOXES, size=SIZE):
    crops = [
        {"score": 0.9 - 0.1 * n, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}
        for n, box in enumerate(boxes)
    ]
    return crop_rows(source, size, {"crops": crops, "focus_point": {"x": 0.5, "y": 0.5}})


@pytest.fixture
def turned(tmp_path, photos):
    """The kitten as a camera that was held upright stores it: 1200 x 812 pixels, displayed as 812 x 1200."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(next(photo for photo in photos if photo.stem == "kitten-on-lawn")) as image:
        image.resize((1200, 812)).save(tmp_path / "turned.jpg", exif=exif, xmp=b"<a/>", quality=95)
    return tmp_path / "turned.jpg"


def exiftool(file) -> dict:
    run = subprocess.run(["exiftool", "-j", "-G1", "-n", "-struct", str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)[0]


def test_roles_say_the_shape_and_the_recommendation():
    best, square, wide = rows_of("a.jpg")
    assert roles(best, True) == ["recomCropping", "portraitCropping"]
    assert roles(square, False) == ["squareCropping"] and roles(wide, False) == ["landscapeCropping"]


@needs_exiftool
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "xmp"])
def test_exiftool_reads_the_regions(tmp_path, suffix):
    target = tmp_path / "out" / f"copy.{suffix}"
    source = tmp_path / ("photo.tif" if suffix == "xmp" else f"photo.{suffix}")
    Image.linear_gradient("L").resize(SIZE[::-1]).convert("RGB").save(source)
    assert MetadataWriter(tmp_path / "out").write(source, source.parent.relative_to(tmp_path), rows_of("p")).exists()
    found = exiftool(target if target.exists() else tmp_path / "out" / f"photo.{suffix}")
    regions = found["XMP-iptcExt:ImageRegion"]
    assert [region["RId"] for region in regions] == ["setcrop-1", "setcrop-2", "setcrop-3"]
    for region, (x1, y1, x2, y2) in zip(regions, BOXES, strict=True):
        boundary = region["RegionBoundary"]
        assert (boundary["RbShape"], boundary["RbUnit"]) == ("rectangle", "relative")
        got = [boundary[f"Rb{name}"] for name in "XYWH"]
        assert got == pytest.approx([x1 / 812, y1 / 1200, (x2 - x1) / 812, (y2 - y1) / 1200], abs=1e-5)
    identifiers = [[role["Identifier"][0].rsplit("/")[-1] for role in region["RRole"]] for region in regions]
    assert identifiers == [["recomCropping", "portraitCropping"], ["squareCropping"], ["landscapeCropping"]]


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("png", {}), ("webp", {}), ("webp", {"lossless": True})])
def test_copies_are_lossless_and_keep_the_rest(tmp_path, suffix, options):
    source, target = tmp_path / f"photo.{suffix}", tmp_path / f"copy.{suffix}"
    exif = Image.Exif()
    exif[0x013B] = "An Author"
    image = Image.linear_gradient("L").resize((812, 1200)).convert("RGB")
    if suffix != "webp":  # a simple WebP file has no place for it
        options = options | {"exif": exif}
    image.save(source, **options)
    write_copy(source, target, rows_of("p"))
    write_copy(target, tmp_path / f"again.{suffix}", rows_of("p", BOXES[:1]))
    with Image.open(source) as before, Image.open(target) as after, Image.open(tmp_path / f"again.{suffix}") as again:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert dict(before.getexif()) == dict(after.getexif()) == dict(again.getexif())
        assert b"setcrop-3" in after.info["xmp"], "the packet is where programs look for it"
        assert again.info["xmp"].count(b"setcrop-") == 1, "an earlier run's regions are replaced"


def test_what_takes_no_packet_says_so():
    for content, part in ((b"GIF89a", "only JPEG"), (b"\xff\xd8\xff\xe0", "broken JPEG"), (b"RIFF....WEBP", "broken")):
        with pytest.raises(EmbeddingError, match=part):
            with_xmp(content, b"<x/>")
    with pytest.raises(EmbeddingError, match="too long"):
        with_xmp(b"\xff\xd8\xff\xda", b"x" * 70_000)


def test_frameright_returns_the_regions(tmp_path, photos):
    node = shutil.which("node")
    modules = os.environ.get("NODE_PATH", str(ROOT / "node_modules"))
    if node is None or not os.path.isdir(os.path.join(modules, PARSER)):
        pytest.skip(f"needs node and {PARSER} (npm install --prefix FOLDER, NODE_PATH=FOLDER/node_modules)")
    write_copy(photos[0], tmp_path / "copy.jpg", rows_of("p"))
    script = (
        f"const {{ Parser }} = require('{PARSER}'); const fs = require('fs');"
        "console.log(JSON.stringify(new Parser(fs.readFileSync(process.argv[1])).getIdcMetadata('rectangle', 'crop')))"
    )
    run = subprocess.run(
        [node, "-e", script, str(tmp_path / "copy.jpg")],
        capture_output=True,
        text=True,
        env=os.environ | {"NODE_PATH": modules},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [region["id"] for region in found] == ["setcrop-1", "setcrop-2", "setcrop-3"]
    for region, (x1, y1, x2, y2) in zip(found, BOXES, strict=True):
        got = [region[name] for name in ("x", "y", "width", "height")]
        assert got == pytest.approx([x1 / 812, y1 / 1200, (x2 - x1) / 812, (y2 - y1) / 1200], abs=1e-5)


@pytest.mark.skipif(not shutil.which("darktable-cli"), reason="needs darktable-cli (darktable)")
def test_darktable_renders_the_crop(turned, tmp_path):
    with Image.open(turned) as image:
        write_sidecar(tmp_path / "turned.xmp", rows_of("p"), image)
        expected = ImageOps.exif_transpose(image).crop(BOXES[0])
    core = ["--core", "--library", ":memory:", "--configdir", str(tmp_path / "c"), "--cachedir", str(tmp_path / "d")]
    files = [str(turned), str(tmp_path / "turned.xmp"), str(tmp_path / "out.png")]
    subprocess.run(["darktable-cli", *files, *core], capture_output=True, check=True, timeout=300)
    with Image.open(tmp_path / "out.png") as rendered:
        assert np.abs(np.subtract(rendered.size, expected.size)).max() <= 1
        got, wanted = (np.asarray(image.convert("RGB").resize((60, 80)), float) for image in (rendered, expected))
        assert np.abs(got - wanted).mean() < 8


def test_sidecars_keep_what_others_wrote(turned, tmp_path):
    sidecar = tmp_path / "turned.xmp"
    sidecar.write_text(
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" crs:Exposure2012="+0.50" crs:HasCrop="False"/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    writer = MetadataWriter(None)
    for boxes in (BOXES, BOXES[:1]):
        assert writer.write(turned, turned.parent, rows_of("p", boxes)) == sidecar
        text = sidecar.read_text()
        assert 'xmp:Rating="4"' in text and 'crs:Exposure2012="+0.50"' in text
        assert text.count("setcrop-") == len(boxes) and text.count("HasCrop>True<") == 1

    sidecar.write_text(text.replace("setcrop-1", "mine"))
    with pytest.raises(ImageFileError, match="a crop of its own"):
        writer.write(turned, turned.parent, rows_of("p"))
    edited = re.sub(r"(CropLeft[^0-9]+0\.)[0-9]+", r"\g<1>123456789", text)
    assert edited != text
    sidecar.write_text(edited)
    with pytest.raises(ImageFileError, match="crop of its own"):
        writer.write(turned, turned.parent, rows_of("p"))
    assert sidecar.read_text() == edited
    sidecar.write_text("no xml")
    with pytest.raises(ImageFileError, match="cannot be read as XMP"):
        writer.write(turned, turned.parent, rows_of("p"))
    sidecar.unlink()
    (tmp_path / "turned.png").write_bytes(turned.read_bytes())
    with pytest.raises(ImageFileError, match=r"turned\.xmp is that of"):
        writer.write(tmp_path / "turned.png", turned.parent, rows_of("p"))


def dng_with(preview: bytes, size: tuple[int, int]) -> bytes:
    """A DNG file of 64 x 48 raw pixels with a JPEG preview, as cameras and converters write them."""

    def directory(entries: list[tuple[int, int, int, bytes]], at: int, beside: bytes = b"") -> bytes:
        body, values, end = b"", b"", at + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in sorted(entries):
            if len(value) > 4:
                body += struct.pack("<HHII", tag, kind, count, end + len(values))
                values += value + b"\0" * (len(value) % 2)
            else:
                body += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        return struct.pack("<H", len(entries)) + body + struct.pack("<I", 0) + values

    def short(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}H", *values)

    def long(value: int) -> bytes:
        return struct.pack("<I", value)

    pixels = np.random.default_rng(0).integers(0, 4000, (48, 64), dtype=np.uint16).tobytes()
    preview_at, pixels_at = 4096, 4096 + len(preview) + len(preview) % 2
    identity = b"".join(struct.pack("<ii", *pair) for pair in [(1, 1), (0, 1), (0, 1)] * 3)
    first = [
        (254, 4, 1, long(1)), (256, 4, 1, long(size[0])), (257, 4, 1, long(size[1])), (258, 3, 3, short(8, 8, 8)),
        (259, 3, 1, short(7)), (262, 3, 1, short(6)), (271, 2, 5, b"Make\0"), (272, 2, 6, b"Model\0"),
        (273, 4, 1, long(preview_at)), (274, 3, 1, short(1)), (277, 3, 1, short(3)), (278, 4, 1, long(size[1])),
        (279, 4, 1, long(len(preview))), (330, 4, 1, long(2048)), (50706, 1, 4, bytes([1, 4, 0, 0])),
        (50708, 2, 6, b"Model\0"), (50721, 10, 9, identity), (50778, 3, 1, short(21)),
    ]  # fmt: skip
    raw = [
        (254, 4, 1, long(0)), (256, 4, 1, long(64)), (257, 4, 1, long(48)), (258, 3, 1, short(16)),
        (259, 3, 1, short(1)), (262, 3, 1, short(32803)), (273, 4, 1, long(pixels_at)), (277, 3, 1, short(1)),
        (278, 4, 1, long(48)), (279, 4, 1, long(len(pixels))), (33421, 3, 2, short(2, 2)),
        (33422, 1, 4, bytes([0, 1, 1, 2])), (50717, 4, 1, long(4095)),
    ]  # fmt: skip
    content = b"II*\0" + long(8) + directory(first, 8)
    content = content.ljust(2048, b"\0") + directory(raw, 2048)
    return content.ljust(preview_at, b"\0") + preview.ljust(pixels_at - preview_at, b"\0") + pixels


def test_raw_files_are_read_by_their_preview_and_get_sidecars(tmp_path, photos, tiny_checkpoint):
    pytest.importorskip("rawpy", reason="needs rawpy: pip install 'setcrop[raw]'")
    buffer = io.BytesIO()
    with Image.open(photos[0]) as image:
        image.resize((600, 400)).save(buffer, "JPEG")
    (tmp_path / "photo.dng").write_bytes(dng_with(buffer.getvalue(), (600, 400)))
    with open_image(tmp_path / "photo.dng") as image:
        assert image.size == (600, 400) and image.format == "JPEG"
    (tmp_path / "none.nef").write_bytes(b"no raw file at all")
    arguments = ["suggest", str(tmp_path), "--write-metadata", "sidecars", "--json", "--model", str(tiny_checkpoint)]
    run = subprocess.run(
        [sys.executable, "-m", "modeling_setcrop.cli", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 1 and "none.nef: not a raw file with a preview" in run.stderr
    box = json.loads(run.stdout)["crops"][0]["box"]
    text = (tmp_path / "photo.xmp").read_text()
    assert re.search(rf"CropLeft[^>]*>{box['xmin'] / 600:.9f}<", text) and "recomCropping" in text
    assert not (tmp_path / "none.xmp").exists()
