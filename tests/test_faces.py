"""The face detector: its anchors, boxes and squares, and the faces that it finds and does not find."""

from __future__ import annotations

import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import onnx
import pytest
from PIL import Image

from modeling_setcrop.image_reading import LoadedImage, decode_image, open_image
from modeling_setcrop.images import faces
from modeling_setcrop.images.faces import find_faces

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
# In PORTRAIT (512 x 600): what the head takes up with its hair and cap, and the features of the face.
HEAD, FEATURES = (115, 25, 410, 380), (195, 175, 330, 320)


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    with Image.open(PORTRAIT) as image:
        return image.convert("RGB")


def found(image: Image.Image) -> list[tuple[float, float, float, float]]:
    return find_faces(decode_image(image, 256))


def lies(inner, outer) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def is_the_head(box, scale: float = 1.0, offset=(0, 0)) -> bool:
    """Whether a box holds the portrait's features and stays within its head."""
    box = (np.array(box) - np.tile(offset, 2)) / scale
    return lies(FEATURES, box) and lies(box, HEAD)


def test_anchors_are_the_middles_of_two_grids():
    anchors = faces._anchors()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[:4], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32], [3 / 32, 1 / 32]])
    np.testing.assert_allclose(anchors[32], [1 / 32, 3 / 32])
    np.testing.assert_allclose(anchors[511], [31 / 32, 31 / 32])
    np.testing.assert_allclose(anchors[512:519, 0], [1 / 16] * 6 + [3 / 16])
    np.testing.assert_allclose(anchors[-1], [15 / 16, 15 / 16])


def test_boxes_are_decoded_as_distance_from_the_anchor_and_size():
    regressors = np.zeros((2, 16), np.float32)
    regressors[0, :4] = 12.8, -6.4, 25.6, 51.2
    regressors[1, :4] = 0, 0, 64, 32
    boxes = faces._decoded(regressors, np.array([[0.5, 0.5], [0.25, 0.75]]))
    np.testing.assert_allclose(boxes, [[0.5, 0.25, 0.7, 0.65], [0, 0.625, 0.5, 0.875]], atol=1e-6)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (640, 640), (640, 7), (1, 640), (1, 1)])
def test_squares_cover_the_image_and_overlap(size):
    squares = faces._squares(*size)
    assert len(squares) <= 35
    for side in {square.side for square in squares}:
        level = [square for square in squares if square.side == side]
        for axis, length in enumerate(size):
            starts = sorted({square[axis] for square in level})
            assert starts[0] <= 0 and starts[-1] + side >= length
            assert all(after - before <= 0.65 * side + 1 for before, after in itertools.pairwise(starts))


def test_a_face_is_found_with_its_hair(portrait):
    (box,) = found(portrait)
    assert is_the_head(box)


def test_a_mirrored_face_lies_mirrored(portrait):
    (box,) = found(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert is_the_head((512 - box[2], box[1], 512 - box[0], box[3]))


def test_a_turned_file_is_looked_at_upright(portrait):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    portrait.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif, quality=95)
    with open_image(file, "turned.jpg") as image:
        (box,) = find_faces(decode_image(image, 256))
    assert is_the_head(box)


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_boxes_are_pixels_of_the_whole_image(portrait, scale):
    image = portrait.resize((round(512 * scale), round(600 * scale)))
    (box,) = found(image)
    assert is_the_head(box, scale)


@pytest.mark.parametrize("place", [(0, 0), (2760, 0), (0, 1720), (2760, 1720), (1300, 900)])
def test_a_small_face_is_found_anywhere_in_a_large_image(portrait, place):
    image = Image.new("RGB", (3000, 2000), (90, 120, 90))
    image.paste(portrait.crop((100, 0, 400, 350)).resize((240, 280)), place)
    (box,) = found(image)
    assert is_the_head(box, 0.8, np.array(place) - [80, 0])


def test_the_largest_face_comes_first_and_each_once(portrait):
    image = Image.new("RGB", (1000, 600), (90, 120, 90))
    image.paste(portrait.resize((256, 300)), (0, 200))
    image.paste(portrait, (488, 0))
    large, small = found(image)
    assert is_the_head(large, 1, (488, 0)) and is_the_head(small, 0.5, (0, 200))


def test_a_part_of_an_image_gives_boxes_in_the_whole(portrait):
    (box,) = find_faces(LoadedImage(portrait, (1000, 1400), (300, 200, 812, 800)))
    assert is_the_head(box, 1, (300, 200))


def test_boxes_stay_inside_the_image(portrait):
    cut = portrait.crop((180, 130, 360, 330))
    for box in found(cut):
        assert lies(box, (0, 0, 180, 200)) and box[0] < box[2] and box[1] < box[3]


def test_a_cut_out_face_is_found(portrait):
    mask = Image.new("L", portrait.size, 0)
    mask.paste(255, HEAD)
    portrait = portrait.copy()
    portrait.putalpha(mask)
    (box,) = found(portrait)
    assert is_the_head(box)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (64, 48)])
def test_an_image_without_faces_has_none(size):
    assert found(Image.new("RGB", size, (200, 170, 150))) == []


def test_animals_and_landscapes_have_no_faces(photos):
    for photo in photos:
        with Image.open(photo) as image:
            assert find_faces(decode_image(image, 256, draft=True)) == []


def test_threads_share_one_detector(portrait):
    loaded = decode_image(portrait, 256)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(find_faces, [loaded] * 8))
    assert all(answer == answers[0] for answer in answers) and answers[0]
    assert pickle.loads(pickle.dumps(find_faces)) is find_faces


def test_the_graph_is_small_and_says_nothing_of_its_maker():
    assert faces._GRAPH.stat().st_size < 300_000
    graph = onnx.load(faces._GRAPH)
    assert not graph.metadata_props and not graph.doc_string and graph.producer_name == "setcrop"
