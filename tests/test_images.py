"""Reading any image and writing crops of it."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, ImageSequence, ImageStat

from modeling_setcrop import image_reading
from modeling_setcrop.image_reading import ImageFileError, to_rgb
from modeling_setcrop.images.atomic import atomic_writer
from modeling_setcrop.images.finding import find_images
from modeling_setcrop.images.formats import output_suffix
from modeling_setcrop.images.writing import CropFile, write_crops

SHORT_SIDE = 640


def load_image_file(path, short_side=SHORT_SIDE):
    return image_reading.load_image_file(path, short_side)


def write_crop(source, box, target, size=None, **options):
    write_crops(source, [CropFile(box, Path(target), size)], **options)


READABLE = {
    "alpha.png", "animated.gif", "animated.webp", "bilevel.tif", "cmyk.jpg", "grey.jpg", "grey16.png",
    "grey_alpha.png", "naïve name (1) & more.jpg", "one_pixel.png", "palette.png", "panorama_33_to_1.jpg", "plain.jpg",
    "png_named_jpg.jpg", "progressive.jpg", "tall_1_to_40.jpg", *(f"exif_orientation_{n}.jpg" for n in range(1, 9)),
}  # fmt: skip
BROKEN = {
    "garbage.png": "not an image",
    "header_only.jpg": "image",
    "text_named.jpg": "not an image",
    "truncated.jpg": "truncated",
    "zero_bytes.jpg": "empty file",
}


def quadrants(width: int = 40, height: int = 24) -> Image.Image:
    """Four plain colours, so that any turn shows."""
    image = Image.new("RGB", (width, height))
    w, h = width // 2, height // 2
    for colour, corner in zip(("red", "lime", "blue", "white"), ((0, 0), (w, 0), (0, h), (w, h)), strict=True):
        image.paste(colour, (*corner, corner[0] + w, corner[1] + h))
    return image


def test_every_odd_file_is_either_read_or_reported_in_one_line(shared_data):
    files = sorted((shared_data / "odd").iterdir())
    assert {file.name for file in files} == READABLE | set(BROKEN)
    for file in files:
        if file.name in READABLE:
            loaded = load_image_file(file)
            with Image.open(file) as image:
                expected = ImageOps.exif_transpose(image).size
            assert loaded.image.mode == "RGB" and loaded.size == expected[::-1]
        else:
            with pytest.raises(ImageFileError, match=BROKEN[file.name]) as caught:
                load_image_file(file)
            assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_every_readable_odd_file_gives_a_crop_of_its_own_kind(shared_data, tmp_path):
    for name in sorted(READABLE):
        source = shared_data / "odd" / name
        height, width = load_image_file(source).size
        box = (width // 4, height // 4, max(width // 4 + 1, width * 3 // 4), max(height // 4 + 1, height * 3 // 4))
        target = (tmp_path / name).with_suffix(output_suffix(source))
        write_crop(source, box, target)
        with Image.open(source) as old, Image.open(target) as new:
            assert new.size == (box[2] - box[0], box[3] - box[1]), name
            assert new.format == old.format and getattr(new, "n_frames", 1) == getattr(old, "n_frames", 1), name
            assert new.mode == old.mode or old.format in ("GIF", "WEBP"), name
            assert new.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if old.format in ("PNG", "TIFF"):
                assert ImageChops.difference(new.convert("RGB"), old.crop(box).convert("RGB")).getbbox() is None
    assert not list(tmp_path.glob(".*"))


def test_missing_files_folders_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ImageFileError, match=r"nowhere\.jpg: no such file"):
        load_image_file(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageFileError, match="a folder, not an image file"):
        load_image_file(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    errors: list[ImageFileError] = []
    assert list(find_images([tmp_path, tmp_path / "gone", "https://example.org/a.jpg"], errors.append)) == []
    assert [error.reason for error in errors] == [
        "a folder without images",
        "no such file or folder",
        "an address; files are read",
    ]


def test_folders_are_searched_in_order_without_hidden_files(tmp_path):
    for name in ("b/two.JPG", "b/.hidden.jpg", ".trash/three.jpg", "a.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [relative.as_posix() for _, relative in find_images([tmp_path], pytest.fail)]
    assert found == ["a.png", "b/two.JPG"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (10, 14)])
def test_crops_are_upright_whatever_the_orientation(orientation, size, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    source = tmp_path / "turned.png"
    quadrants().save(source, exif=exif)
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image)
    box = (3, 5, 13, 19)
    write_crop(source, box, tmp_path / "crop.png", size=size)
    with Image.open(tmp_path / "crop.png") as crop:
        assert ImageChops.difference(crop, upright.crop(box)).getbbox() is None
    loaded = load_image_file(source)
    assert ImageChops.difference(loaded.image, upright).getbbox() is None and loaded.size == upright.size[::-1]


def test_exif_and_colour_profile_are_carried_over_without_orientation_thumbnail_or_old_size(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Copyright] = "A. Photographer"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExifImageWidth: 40,
        ExifTags.Base.ExifImageHeight: 24,
        ExifTags.Base.FNumber: 2.8,
        ExifTags.Base.MakerNote: b"offsets",
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    source, target = tmp_path / "source.jpg", tmp_path / "crop.jpg"
    quadrants().save(source, exif=exif, icc_profile=profile, quality=95, dpi=(300, 300))
    before = source.read_bytes()
    write_crop(source, (2, 4, 12, 34), target)
    with Image.open(target) as crop:
        new = crop.getexif()
        assert crop.info["icc_profile"] == profile and crop.info["dpi"] == (300, 300)
        assert (new[ExifTags.Base.Make], new[ExifTags.Base.Copyright]) == ("Camera", "A. Photographer")
        assert ExifTags.Base.Orientation not in new and not new.get_ifd(ExifTags.IFD.IFD1)
        details = new.get_ifd(ExifTags.IFD.Exif)
        assert details[ExifTags.Base.ExifImageWidth] == 10 and details[ExifTags.Base.ExifImageHeight] == 30
        assert float(details[ExifTags.Base.FNumber]) == 2.8 and ExifTags.Base.MakerNote not in details
        assert new.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert source.read_bytes() == before


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_one_crop_is_cut_from_every_frame_with_its_duration(suffix, tmp_path):
    frames = [quadrants().rotate(180 * (n % 2)) for n in range(4)]
    source, target = tmp_path / f"source{suffix}", tmp_path / f"crop{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=[50, 100, 150, 200], loop=3, **options)
    write_crop(source, (0, 0, 20, 12), target)
    with Image.open(target) as crop:
        assert crop.n_frames == 4 and crop.info["loop"] == 3
        colours, durations = [], []
        for frame in ImageSequence.Iterator(crop):
            frame.load()
            durations.append(frame.info["duration"])
            colours.append("red" if frame.convert("RGB").getpixel((10, 6))[2] < 128 else "white")
    assert colours == ["red", "white"] * 2 and durations == [50, 100, 150, 200]


def test_an_animation_written_to_a_still_format_is_its_first_frame(tmp_path):
    source = tmp_path / "source.gif"
    quadrants().save(source, save_all=True, append_images=[quadrants().rotate(180)])
    write_crop(source, (0, 0, 20, 12), tmp_path / "crop.jpg")
    with Image.open(tmp_path / "crop.jpg") as crop:
        assert crop.format == "JPEG" and crop.getpixel((10, 6))[0] > 240


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif", ".bmp", ".avif"])
def test_any_kind_of_image_can_be_written_in_any_format(mode, suffix, tmp_path):
    source = tmp_path / "source.tif"
    image = quadrants().convert("L").convert(mode) if mode == "I;16" else quadrants().convert(mode)
    image.save(source)
    write_crop(source, (0, 0, 20, 24), tmp_path / f"crop{suffix}", size=(10, 12))
    with Image.open(tmp_path / f"crop{suffix}") as crop:
        assert crop.size == (10, 12)


def test_transparent_parts_are_white_and_16_bit_is_scaled():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.new("I;16", (4, 4), 65535)
    assert to_rgb(deep).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("I;16", (4, 4), 32896)).getpixel((0, 0)) == (128, 128, 128)


def test_large_jpegs_are_decoded_small_for_a_suggestion(photos):
    loaded = load_image_file(photos[0], short_side=300)
    assert 300 <= min(loaded.image.size) < 600
    assert max(loaded.size) == 2400


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_writer(tmp_path / "crop.jpg") as file:
        file.write(b"half an image")
        raise RuntimeError("interrupted")
    assert list(tmp_path.iterdir()) == []
    source = tmp_path / "wide.png"
    Image.new("RGB", (17000, 2)).save(source)
    with pytest.raises(ImageFileError, match=r"crop\.webp: cannot be written"):
        write_crop(source, (0, 0, 17000, 2), tmp_path / "crop.webp")
    assert [file.name for file in tmp_path.iterdir()] == ["wide.png"]


def test_several_crops_of_one_file_are_those_written_one_by_one(photos, tmp_path):
    boxes = [(100, 50, 1300, 900), (10, 20, 610, 820)]
    for sizes in ([None, None], [(300, 212), (150, 200)], [None, (150, 200)]):
        for number, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
            write_crop(photos[0], box, tmp_path / f"one{number}.png", size=size)
        write_crops(
            photos[0],
            [
                CropFile(box, tmp_path / f"all{n}.png", size)
                for n, (box, size) in enumerate(zip(boxes, sizes, strict=True))
            ],
        )
        for number in range(2):
            with Image.open(tmp_path / f"one{number}.png") as one, Image.open(tmp_path / f"all{number}.png") as other:
                difference = ImageChops.difference(one.convert("L"), other.convert("L"))
                # A file decoded at another scale for the larger crop differs a little in the smaller.
                assert one.size == other.size and ImageStat.Stat(difference).mean[0] < 2


def test_boxes_outside_the_image_and_unknown_formats_are_refused(tmp_path):
    source = tmp_path / "source.png"
    quadrants().save(source)
    with pytest.raises(ValueError, match=r"is not inside the image \(40 x 24\)"):
        write_crop(source, (0, 0, 41, 24), tmp_path / "crop.png")
    with pytest.raises(ValueError, match="unknown image format"):
        write_crop(source, (0, 0, 4, 4), tmp_path / "crop.xyz")
    with pytest.raises(ValueError, match="unknown image format 'xyz': use one of avif"):
        output_suffix(source, "xyz")


def test_suffixes_follow_the_real_format(tmp_path):
    for name, format, expected in [("a.jpg", "PNG", ".png"), ("b.JPEG", "JPEG", ".JPEG"), ("c.ppm", "PPM", ".jpg")]:
        quadrants().save(tmp_path / name, format=format)
        assert output_suffix(tmp_path / name) == expected
    assert output_suffix(tmp_path / "a.jpg", "WebP") == ".webp"


def test_cmyk_goes_to_rgb_through_its_profile_only_when_the_format_asks(tmp_path):
    source = tmp_path / "source.jpg"
    quadrants().convert("CMYK").save(source, quality=95)
    write_crop(source, (0, 0, 20, 12), tmp_path / "crop.jpg")
    write_crop(source, (0, 0, 20, 12), tmp_path / "crop.png")
    with Image.open(tmp_path / "crop.jpg") as same, Image.open(tmp_path / "crop.png") as other:
        assert (same.mode, other.mode) == ("CMYK", "RGB")
        assert other.getpixel((5, 5))[0] > 200 and other.getpixel((5, 5))[1] < 60


PEAK = """
import resource, sys
from pathlib import Path
from modeling_setcrop.image_reading import lift_pixel_limit, load_image_file
from modeling_setcrop.images.writing import CropFile, write_crops
lift_pixel_limit()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = load_image_file(sys.argv[1], 640)
assert image.size == (6000, 8000), image.size
middle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_crops(sys.argv[1], [CropFile((100, 100, 7900, 5900), Path(sys.argv[2]))])
print(middle - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures resident memory the Linux way")
def test_memory_for_48_megapixels_stays_within_the_stated_bound(tmp_path):
    source = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((8000, 6000)).convert("RGB").save(source)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(tmp_path / "crop.jpg")],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    suggestion, writing = (int(figure) * 1024 for figure in result.stdout.split())
    assert suggestion < 1.0 * 48e6 and writing < 8.2 * 48e6


def test_heif_is_asked_for_by_name_where_it_cannot_be_read(tmp_path):
    source = tmp_path / "photo.heic"
    try:
        import pillow_heif
    except ImportError:
        source.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
        with pytest.raises(ImageFileError, match="pillow-heif"):
            load_image_file(source)
        return
    buffer = BytesIO()
    pillow_heif.from_pillow(quadrants(64, 64)).save(buffer)
    source.write_bytes(buffer.getvalue())
    assert load_image_file(source).size == (64, 64)
