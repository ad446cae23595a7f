"""SetCrop inside Willow, a stock Wagtail and easy-thumbnails. Skipped without them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from modeling_setcrop import Cropper
from modeling_setcrop.crop_geometry import largest_area

pytest.importorskip("wagtail", reason="needs Wagtail: pip install 'setcrop[wagtail]'")
pytest.importorskip("easy_thumbnails", reason="needs easy-thumbnails: pip install 'setcrop[easy-thumbnails]'")


@pytest.fixture(scope="module")
def site(tiny_checkpoint):
    """A Wagtail site whose SetCrop has the tests' model."""
    import django
    from django.core.management import call_command

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETCROP_MODEL", str(tiny_checkpoint))
        patch.setenv("DJANGO_SETTINGS_MODULE", "django_site")
        django.setup()
        call_command("migrate", verbosity=0)
        yield


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    return Cropper(str(tiny_checkpoint))


def where(size: tuple[int, int]) -> Image.Image:
    """An image whose red says how far right a pixel lies and whose green how far down, 0..255."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 90)], axis=-1).astype(np.uint8))


def seen(image: Image.Image) -> tuple[float, float, float, float]:
    """Which part of `where` an image shows: left, top, right, bottom in 0..1."""
    pixels = np.asarray(image.convert("RGB"), dtype=float) / 255
    return pixels[:, 0, 0].mean(), pixels[0, :, 1].mean(), pixels[:, -1, 0].mean(), pixels[-1, :, 1].mean()


def test_wagtail_stores_the_focal_point_and_a_rendition_follows_it(site, cropper, photos):
    from django.core.files.images import ImageFile
    from wagtail.images import get_image_model

    data = photos[2].read_bytes()
    stored = get_image_model()(title="kitten", file=ImageFile(io.BytesIO(data), name="kitten.jpg"))
    stored.set_focal_point(stored.get_suggested_focal_point())
    stored.save()
    # What SetCrop says of the same file.
    width, height = Image.open(photos[2]).size
    opened = Image.open(photos[2])
    opened.load()
    focus = cropper(opened, top_k=1, details=True)["focus_point"]
    options = {"aspect_ratio": "square", "max_area": 1 / 6, "keep": [(focus["x"] * width, focus["y"] * height)]}
    box = cropper(opened, top_k=1, **options)[0]["box"]
    assert stored.focal_point_x == pytest.approx((box["xmin"] + box["xmax"]) / 2, abs=1)
    assert stored.focal_point_y == pytest.approx((box["ymin"] + box["ymax"]) / 2, abs=1)
    assert box["xmin"] <= focus["x"] * width <= box["xmax"] and box["ymin"] <= focus["y"] * height <= box["ymax"]

    marked = get_image_model()(title="where")
    buffer = io.BytesIO()
    where((width, height)).save(buffer, "PNG")
    marked.file = ImageFile(io.BytesIO(buffer.getvalue()), name="where.png")
    marked.set_focal_point(stored.get_focal_point())
    marked.save()
    left, top, right, bottom = seen(Image.open(marked.get_rendition("fill-200x300").file))
    # The rendition holds the focal content, up to a pixel of its own.
    assert left <= box["xmin"] / width + 0.01 and right >= box["xmax"] / width - 0.01
    assert top <= box["ymin"] / height + 0.01 and bottom >= box["ymax"] / height - 0.01
    assert right - left < 0.9


def test_willow_features_lie_where_a_turned_file_has_them(site, photos):
    from willow.image import Image as WillowImage

    def features(image: Image.Image, **options) -> np.ndarray:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return np.array(WillowImage.open(buffer).detect_features())

    # So small that nothing is scaled down before it is turned, which would round differently.
    upright = Image.open(photos[0]).resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = features(upright.transpose(Image.Transpose.ROTATE_180), exif=exif)
    assert np.array_equal(np.sort([96, 64] - turned, axis=0), features(upright))


@pytest.mark.parametrize("tight", [False, True])
def test_easy_thumbnails_cuts_the_pipelines_crop(site, cropper, photos, tight):
    from easy_thumbnails.files import get_thumbnailer

    with photos[1].open("rb") as file:
        thumbnailer = get_thumbnailer(file, relative_name="photo.jpg")
        thumbnail = thumbnailer.generate_thumbnail({"size": (240, 160), "crop": "setcrop", "tight": tight})
    with Image.open(photos[1]) as opened:
        opened.load()
        bounds = {} if tight else {"min_area": largest_area(1.5, opened.size[::-1])}
        box = cropper(opened, aspect_ratio=1.5, top_k=1, **bounds)[0]["box"]
        expected = opened.crop(tuple(box.values())).resize((240, 160), Image.Resampling.LANCZOS)
    got = np.asarray(Image.open(thumbnail.file).convert("RGB"), dtype=float)
    assert got.shape == (160, 240, 3)
    assert np.abs(got - np.asarray(expected, dtype=float)).mean() < 4


def test_other_thumbnails_are_left_alone(site, photos):
    from modeling_setcrop.integrations.easy_thumbnails import setcrop

    with Image.open(photos[0]) as image:
        assert setcrop(image, (100, 100), crop=True) is image
        assert setcrop(image, (100, 0), crop="setcrop") is image
