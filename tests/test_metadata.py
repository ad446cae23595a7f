"""Crops keep their image's credit, and say nothing that the crop makes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from PIL import Image

from modeling_setcrop.images.iptc import parse_iptc, write_iptc
from modeling_setcrop.images.writing import CropFile, write_crops
from modeling_setcrop.images.xmp import Cut, XmpError, crop_xmp, parse_xmp, write_xmp

FORMATS = ("jpg", "png", "webp", "tif", "avif")
needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool (libimage-exiftool-perl)")

IIM = [
    (1, 90, b"\x1b%G"),
    (2, 80, "Zoë Photographer".encode()),
    (2, 116, b"(c) Agency"),
    (2, 120, b"A caption"),
    (2, 25, b"dunes"),
    (2, 25, b"hike"),
    (2, 90, b"Palm Springs"),
]
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
  xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
  xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:other="http://example.com/other/" other:Own="kept"
  tiff:Orientation="6" tiff:ImageWidth="800" exif:GPSLatitude="33,49.5N" photoshop:City="Palm Springs"
  crs:HasCrop="True" crs:CropLeft="0.1" crs:Exposure2012="+0.5">
 <dc:creator><rdf:Seq><rdf:li>Zoë Photographer</rdf:li></rdf:Seq></dc:creator>
 <dc:rights><rdf:Alt><rdf:li xml:lang="x-default">(c) Agency</rdf:li></rdf:Alt></dc:rights>
 <dc:description><rdf:Alt><rdf:li xml:lang="x-default">A caption</rdf:li></rdf:Alt></dc:description>
 <exif:PixelYDimension>600</exif:PixelYDimension>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.fixture
def credited(tmp_path):
    """An image of 800 x 600 pixels with EXIF, IPTC-IIM, XMP and a colour profile."""
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 1  # Pillow would believe the XMP otherwise
    exif[0x013B], exif[0x8298] = "Zoe Photographer", "(c) Agency"
    exif.get_ifd(0x8769)[0xA002] = 800
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (33.0, 49.0, 30.0)
    image = Image.linear_gradient("L").resize((800, 600)).convert("RGB")
    iim = write_iptc(IIM)
    resource = b"8BIM\x04\x04\0\0" + len(iim).to_bytes(4, "big") + iim + b"\0" * (len(iim) % 2)
    image.save(
        tmp_path / "credited.jpg",
        exif=exif,
        xmp=XMP.encode(),
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        extra=segment(0xED, b"Photoshop 3.0\0" + resource),
    )
    return tmp_path / "credited.jpg"


def said(file) -> dict:
    run = subprocess.run(["exiftool", "-j", "-G1", "-n", "-struct", str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)[0]


@needs_exiftool
@pytest.mark.parametrize("suffix", FORMATS)
def test_exiftool_reads_the_credit_of_every_formats_crop(credited, tmp_path, suffix):
    target = tmp_path / f"crop.{suffix}"
    write_crops(credited, [CropFile((100, 50, 700, 450), target)])
    found = said(target)
    assert found["XMP-dc:Creator"] in ("Zoë Photographer", ["Zoë Photographer"])
    assert found["XMP-dc:Rights"] == "(c) Agency" and found["XMP-dc:Description"] == "A caption"
    assert found["IFD0:Artist"] == "Zoe Photographer" and "GPS:GPSLatitude" in found
    assert found["XMP-other:Own"] == "kept"
    assert "ICC_Profile:ProfileDescription" in found or "ICC-header:ProfileClass" in found
    if suffix in ("jpg", "png", "tif"):
        assert found["IPTC:By-line"] == "Zoë Photographer" and found["IPTC:Caption-Abstract"] == "A caption"
        assert found["IPTC:Keywords"] == ["dunes", "hike"]
    else:  # holds no IPTC-IIM: what only that said stands in XMP
        assert found["XMP-dc:Subject"] == ["dunes", "hike"]
    # What the crop makes wrong.
    assert (found["XMP-tiff:ImageWidth"], found["XMP-exif:ExifImageHeight"]) == (600, 400)
    assert found["ExifIFD:ExifImageWidth"] == 600
    assert not {"XMP-tiff:Orientation", "XMP-crs:HasCrop", "XMP-crs:CropLeft", "IFD0:Orientation"} & found.keys()
    assert found["XMP-crs:Exposure2012"] in (0.5, "+0.5")


@needs_exiftool
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_crop_of_a_crop_in_any_format_keeps_it(credited, tmp_path, suffix):
    first, second = tmp_path / f"first.{suffix}", tmp_path / "second.jpg"
    write_crops(credited, [CropFile((100, 50, 700, 450), first)])
    write_crops(first, [CropFile((0, 0, 300, 200), second)])
    found = said(second)
    assert found["XMP-dc:Creator"] in ("Zoë Photographer", ["Zoë Photographer"])
    assert found["IFD0:Artist"] == "Zoe Photographer"
    assert found["XMP-tiff:ImageWidth"] == 300
    if suffix in ("jpg", "png", "tif"):
        assert found["IPTC:By-line"] == "Zoë Photographer"


@needs_exiftool
@pytest.mark.parametrize("suffix", FORMATS)
def test_location_or_everything_can_be_left_out(credited, tmp_path, suffix):
    target = tmp_path / f"crop.{suffix}"
    write_crops(credited, [CropFile((100, 50, 700, 450), target)], strip="location")
    found = said(target)
    assert found["XMP-dc:Rights"] == "(c) Agency" and found["IFD0:Artist"] == "Zoe Photographer"
    places = [name for name in found if "GPS" in name or "City" in name]
    assert places == [] and "Palm Springs" not in json.dumps(found)
    write_crops(credited, [CropFile((100, 50, 700, 450), target)], strip="all")
    found = said(target)
    assert not [name for name in found if name.startswith(("XMP", "IPTC", "GPS", "ExifIFD"))]
    assert "Photographer" not in json.dumps(found)
    with Image.open(target) as image:
        assert image.info["icc_profile"]


def regions(body: str, prefix: str, space: str) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:{prefix}="{space}">{body}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def cropped(packet: bytes) -> str:
    """The right half of the upper half of an image of 800 x 600, at 200 x 150 pixels."""
    document = parse_xmp(packet)
    crop_xmp(document, Cut((400, 0, 800, 300), (800, 600), (200, 150)))
    return write_xmp(document).decode()


def test_regions_of_the_metadata_working_group_move_or_go():
    def li(name: str, x: float, y: float, w: float, h: float) -> str:
        return (
            f'<rdf:li><rdf:Description mwg-rs:Name="{name}" mwg-rs:Type="Face"><mwg-rs:Area stArea:x="{x}" '
            f'stArea:y="{y}" stArea:w="{w}" stArea:h="{h}" stArea:unit="normalized"/></rdf:Description></rdf:li>'
        )

    packet = regions(
        '<mwg-rs:Regions xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#" '
        'xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#" rdf:parseType="Resource">'
        '<mwg-rs:AppliedToDimensions stDim:w="800" stDim:h="600" stDim:unit="pixel"/><mwg-rs:RegionList><rdf:Bag>'
        + li("inside", 0.75, 0.25, 0.1, 0.2)
        + li("outside", 0.25, 0.75, 0.2, 0.2)
        + li("across", 0.5, 0.25, 0.2, 0.2)
        + "</rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>",
        "mwg-rs",
        "http://www.metadataworkinggroup.com/schemas/regions/",
    )
    text = cropped(packet)
    assert 'mwg-rs:Name="outside"' not in text
    assert 'stArea:x="0.5" stArea:y="0.5" stArea:w="0.2" stArea:h="0.4"' in text
    assert 'stArea:x="0.1" stArea:y="0.5" stArea:w="0.2" stArea:h="0.4"' in text
    assert 'stDim:w="200" stDim:h="150"' in text


def test_iptc_and_microsoft_regions_move_or_go():
    def li(name: str, unit: str, **values: float) -> str:
        fields = "".join(f"<Iptc4xmpExt:{key}>{value}</Iptc4xmpExt:{key}>" for key, value in values.items())
        return (
            f'<rdf:li rdf:parseType="Resource"><Iptc4xmpExt:rId>{name}</Iptc4xmpExt:rId><Iptc4xmpExt:RegionBoundary '
            f'rdf:parseType="Resource"><Iptc4xmpExt:rbUnit>{unit}</Iptc4xmpExt:rbUnit>{fields}'
            "</Iptc4xmpExt:RegionBoundary></rdf:li>"
        )

    space = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    body = (
        "<Iptc4xmpExt:ImageRegion><rdf:Bag>"
        + li("share", "relative", rbX=0.6, rbY=0.1, rbW=0.2, rbH=0.2)
        + li("pixel", "pixel", rbX=480, rbY=60, rbW=160, rbH=120)
        + li("gone", "relative", rbX=0.1, rbY=0.6, rbW=0.2, rbH=0.2)
        + li("circle", "relative", rbX=0.75, rbY=0.25, rbRx=0.1)
        + "</rdf:Bag></Iptc4xmpExt:ImageRegion>"
    )
    text = cropped(regions(body, "Iptc4xmpExt", space))
    assert "gone" not in text
    for number, value in zip(("rbX", "rbY", "rbW", "rbH"), ("0.2", "0.2", "0.4", "0.4"), strict=True):
        assert f"<Iptc4xmpExt:{number}>{value}<" in text
    for number, value in zip(("rbX", "rbY", "rbW", "rbH"), ("40", "30", "80", "60"), strict=True):
        assert f"<Iptc4xmpExt:{number}>{value}<" in text
    assert "<Iptc4xmpExt:rbX>0.5<" in text and "<Iptc4xmpExt:rbRx>0.2<" in text

    body = (
        '<MP:RegionInfo xmlns:MPReg="http://ns.microsoft.com/photo/1.2/t/Region#" rdf:parseType="Resource"><rdf:Bag>'
        '<rdf:li MPReg:Rectangle="0.6, 0.1, 0.2, 0.2" MPReg:PersonDisplayName="A"/>'
        '<rdf:li MPReg:Rectangle="0.1, 0.6, 0.2, 0.2" MPReg:PersonDisplayName="B"/></rdf:Bag></MP:RegionInfo>'
    )
    text = cropped(regions(body, "MP", "http://ns.microsoft.com/photo/1.2/"))
    assert 'MPReg:Rectangle="0.2, 0.2, 0.4, 0.4"' in text and '"B"' not in text


def test_xmp_that_is_none_is_left_out(tmp_path):
    for packet in (b"no xml", b"<a/>", b'<!DOCTYPE a [<!ENTITY b "c">]><a/>'):
        with pytest.raises(XmpError):
            parse_xmp(packet)
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", xmp=b"no xml")
    write_crops(tmp_path / "a.jpg", [CropFile((0, 0, 50, 50), tmp_path / "b.jpg")])
    with Image.open(tmp_path / "b.jpg") as image:
        assert "xmp" not in image.info


def test_xmp_too_long_for_jpeg_loses_its_history_first(tmp_path):
    long = XMP.replace('crs:Exposure2012="+0.5"', f'crs:ToneCurve="{"x" * 66_000}"')
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png", pnginfo=_png_text(long))
    write_crops(tmp_path / "a.png", [CropFile((0, 0, 50, 50), tmp_path / "b.jpg")])
    with Image.open(tmp_path / "b.jpg") as image:
        assert b"(c) Agency" in image.info["xmp"] and b"ToneCurve" not in image.info["xmp"]


def _png_text(packet: str):
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet)
    return text


def test_iptc_blocks_read_what_they_wrote():
    datasets = [*IIM, (2, 202, b"p" * 40_000)]
    assert parse_iptc(write_iptc(datasets)) == datasets
    assert parse_iptc(write_iptc(datasets)[:-1]) == IIM
    assert parse_iptc(b"") == parse_iptc(b"none") == []
