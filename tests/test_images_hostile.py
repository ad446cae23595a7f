"""What images, disks and folders do to a run, one file at a time: nothing torn, nothing hung, nothing unnamed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageChops, ImageOps

from modeling_setcrop.image_reading import ImageFileError, decode_image, load_image_file, open_image, to_rgb
from modeling_setcrop.images.atomic import (
    OLD_PREFIX,
    FileWriteError,
    atomic_files,
    atomic_folder,
    atomic_writer,
    sweep_parts,
)
from modeling_setcrop.images.formats import own_suffix
from modeling_setcrop.images.writing import CropFile, write_crops

try:
    import resource
except ImportError:
    resource = None


def quadrants(width: int = 40, height: int = 24) -> Image.Image:
    """Four plain colours, so that any turn shows."""
    image = Image.new("RGB", (width, height))
    w, h = width // 2, height // 2
    for colour, corner in zip(("red", "lime", "blue", "white"), ((0, 0), (w, 0), (0, h), (w, h)), strict=True):
        image.paste(colour, (*corner, corner[0] + w, corner[1] + h))
    return image


def noise(width: int = 320, height: int = 240) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let files have so many bytes at most, as on a disk that is that full: the last write is a short one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(resource is None, reason="limits the size of files the POSIX way")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp", ".gif", ".tga"])
def test_a_disk_that_lacks_the_last_bytes_gives_an_error_and_no_crop(suffix, tmp_path):
    source, target = tmp_path / "source.png", tmp_path / f"crop{suffix}"
    noise().save(source)
    write_crops(source, [CropFile((0, 0, 320, 240), target)])
    whole = target.stat().st_size
    target.unlink()
    for missing in (1, 700):
        with pytest.raises(ImageFileError, match=r"cannot be written \(File too large\)"), full_disk(whole - missing):
            write_crops(source, [CropFile((0, 0, 320, 240), target)])
        assert [file.name for file in tmp_path.iterdir()] == ["source.png"]


def test_atomic_files_and_folders_are_whole_or_not_there(tmp_path):
    with atomic_writer(tmp_path / "new" / "a.bin") as file:
        file.write(b"whole")
        assert not (tmp_path / "new" / "a.bin").exists()
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"whole"
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileWriteError, match="folder: cannot be written"), atomic_writer(tmp_path / "folder") as file:
        file.write(b"x")
    with pytest.raises(FileWriteError, match=r"b: cannot be written"), atomic_writer(tmp_path / "new/a.bin/b"):
        pass
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as work:
        (work / "half").touch()
        raise KeyError
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["old"]
    with atomic_folder(tmp_path / "folder") as work:
        (work / "new").touch()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new"]
    with atomic_folder(tmp_path / "folder", keep_existing=True) as work:
        (work / "late").touch()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "new"]


def test_files_go_into_a_folder_when_all_of_them_are_written(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(KeyError), atomic_files(target) as work:
        (work / "half").touch()
        raise KeyError
    assert not target.exists()
    target.mkdir()
    (target / "kept").write_text("kept")
    (target / "changed").write_text("old")
    with atomic_files(target) as work:
        (work / "changed").write_text("new")
        (work / "below").mkdir()
        (work / "below" / "added").touch()
        assert (target / "changed").read_text() == "old"
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*"))
    assert found == ["below", "below/added", "changed", "kept"] and (target / "changed").read_text() == "new"


def test_a_folder_that_was_being_replaced_comes_back_and_halves_go(tmp_path):
    for name in (f"{OLD_PREFIX}moved", f"{OLD_PREFIX}replaced", "replaced", ".setcrop-1-1-1.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    (tmp_path / ".setcrop-1-1-2.part").touch()
    sweep_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "replaced"]
    assert (tmp_path / "moved" / "of").read_text() == f"{OLD_PREFIX}moved"
    assert (tmp_path / "replaced" / "of").read_text() == "replaced"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_turned_tiffs_are_upright_as_any_viewer_shows_them(orientation, compression, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    source, target = tmp_path / "turned.tif", tmp_path / "crop.tif"
    quadrants().save(source, exif=exif, compression=compression)
    # Pillow turns TIFF files as it decodes them; the others are turned by exif_transpose.
    quadrants().save(tmp_path / "turned.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    loaded = load_image_file(source, 1000)
    assert loaded.size == upright.size[::-1]
    assert ImageChops.difference(loaded.image, upright).getbbox() is None
    box = (3, 5, 13, 19)
    for size in (None, (10, 14)):
        write_crops(source, [CropFile(box, target, size)])
        with Image.open(target) as crop:
            assert ImageChops.difference(crop, upright.crop(box)).getbbox() is None
            assert crop.getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "P"])
def test_crops_cut_in_bands_are_those_cut_at_once(orientation, mode, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    source = tmp_path / "source.jpg" if mode == "CMYK" else tmp_path / "source.png"
    noise(41, 37).convert(mode).save(source, exif=exif)
    swapped = orientation > 4
    crop = CropFile((2, 3, 35, 31) if swapped else (3, 2, 38, 33), tmp_path / "one.png")
    write_crops(source, [crop])
    monkeypatch.setattr("modeling_setcrop.images.writing._BAND_PIXELS", 100)
    write_crops(source, [CropFile(crop.box, tmp_path / "bands.png")])
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "bands.png") as bands:
        assert one.size == bands.size == crop.final_size and one.mode == bands.mode
        assert one.tobytes() == bands.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_images_read_in_bands_are_those_read_at_once(mode, monkeypatch):
    image = noise(90, 70)
    image = image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)
    whole = to_rgb(image)
    monkeypatch.setattr("modeling_setcrop.image_reading._BAND_PIXELS", 200)
    assert to_rgb(image).tobytes() == whole.tobytes()


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png", ".webp", ".avif"])
def test_maker_notes_go_and_the_rest_of_the_exif_stays(suffix, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Artist] = "Apple", "A. Photographer"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.MakerNote: b"Apple iOS\0\0\1MM\0\1" + bytes(60),
        ExifTags.Base.FNumber: 1.8,
        ExifTags.Base.UserComment: b"ASCII\0\0\0fine",
        ExifTags.Base.ComponentsConfiguration: b"\1\2\3\0",
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (52.0, 30.0, 0.0)}
    source, target = tmp_path / "phone.jpg", tmp_path / f"crop{suffix}"
    quadrants().save(source, exif=exif)
    write_crops(source, [CropFile((0, 0, 20, 12), target)])
    with Image.open(target) as crop:
        new = crop.getexif()
        assert crop.size == (20, 12) and new[ExifTags.Base.Artist] == "A. Photographer"
        assert float(new.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber]) == 1.8
        assert ExifTags.Base.MakerNote not in new.get_ifd(ExifTags.IFD.Exif)


@pytest.mark.parametrize("source_suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_an_animation_is_one_in_every_format_that_has_them(source_suffix, suffix, tmp_path):
    frames = [quadrants().rotate(180 * (n % 2)) for n in range(4)]
    source, target = tmp_path / f"source{source_suffix}", tmp_path / f"crop{suffix}"
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=100, loop=0)
    write_crops(source, [CropFile((0, 0, 20, 12), target)])
    with Image.open(target) as crop:
        assert crop.n_frames == 4 and crop.size == (20, 12)


def test_an_animation_of_equal_frames_is_written(tmp_path):
    frames = [Image.new("P", (40, 24), n) for n in (3, 3, 3)]
    frames[0].save(tmp_path / "still.gif", save_all=True, append_images=[quadrants(), quadrants()])
    for suffix in (".png", ".gif", ".webp", ".avif"):
        write_crops(tmp_path / "still.gif", [CropFile((0, 0, 20, 12), tmp_path / f"crop{suffix}")])
        with Image.open(tmp_path / f"crop{suffix}") as crop:
            assert crop.size == (20, 12)


def test_animations_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    source = tmp_path / "long.gif"
    frames = [quadrants().rotate(180 * (n % 2)) for n in range(12)]
    frames[0].save(source, save_all=True, append_images=frames[1:])
    monkeypatch.setattr("modeling_setcrop.images.writing.MAX_ANIMATION_PIXELS", 11 * 40 * 24)
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageFileError, match="12 frames of 40 x 24 pixels is over"):
        write_crops(source, [CropFile((0, 0, 20, 12), tmp_path / "crop.gif")])


@pytest.mark.parametrize(("mode", "colour"), [("La", (200, 128)), ("RGBa", (200, 200, 200, 128))])
def test_premultiplied_transparency_lies_over_white(mode, colour):
    image = Image.new(mode.upper(), (40, 24), colour).convert(mode)
    red, green, blue = decode_image(image, 100).image.getpixel((5, 5))
    # Half of 200 over half of white.
    assert red == green == blue and abs(red - 227) <= 1


def test_transparency_is_not_lost_where_the_source_format_has_it(tmp_path):
    clear = Image.new("RGBA", (40, 24), (10, 20, 30, 128))
    for name, expected in (("a.tga", ".tga"), ("b.ico", ".png"), ("c.psd.png", ".png")):
        clear.save(tmp_path / name)
        with open_image(tmp_path / name) as image:
            suffix = own_suffix(tmp_path / name, image)
            width, height = image.size
        assert suffix == expected
        write_crops(tmp_path / name, [CropFile((0, 0, width, height), tmp_path / f"crop{suffix}")])
        with Image.open(tmp_path / f"crop{suffix}") as crop:
            assert crop.mode == "RGBA" and crop.getpixel((2, 2))[3] == 128


@pytest.mark.skipif(os.name == "nt", reason="pipes and sockets have no names there")
def test_pipes_sockets_devices_and_link_loops_are_named_and_do_not_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.jpg")
    os.symlink("/dev/zero", "device.jpg")
    os.symlink("loop.jpg", "loop.jpg")
    Path("folder.jpg").mkdir()
    for name, reason in (
        ("pipe.jpg", "a pipe, not an image file"),
        ("socket.jpg", "a socket, not an image file"),
        ("device.jpg", "a device, not an image file"),
        ("folder.jpg", "a folder, not an image file"),
        ("loop.jpg", "cannot be read (Too many levels of symbolic links)"),
        ("x" * 300 + ".jpg", "cannot be read (File name too long)"),
    ):
        with pytest.raises(ImageFileError) as caught:
            load_image_file(name, 100)
        assert str(caught.value) == f"{name}: {reason}"
    listener.close()


def test_errors_inside_an_open_image_are_not_the_images(tmp_path):
    source = tmp_path / "good.png"
    quadrants().save(source)
    with pytest.raises(IndexError, match="mine"), open_image(source):
        raise IndexError("mine")
    with pytest.raises(OSError, match="No space left"), open_image(source):
        raise OSError(28, "No space left on device")
    (tmp_path / "crop.png").mkdir()
    with pytest.raises(ImageFileError, match=r"good\.png: .*crop\.png: cannot be written \(Is a directory\)"):
        write_crops(source, [CropFile((0, 0, 20, 12), tmp_path / "crop.png")])
