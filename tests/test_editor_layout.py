"""The layout `editor`: lines of JSON into labels and into the shared schema; broken lines are named."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from PIL import Image
from training_data import write_editor
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.crop_geometry import box_iou
from modeling_setcrop.data import DataError, Problems, load
from modeling_setcrop.data.any_box_rating import rate_boxes
from modeling_setcrop.data.crop_views import BOXES, FAMILIES, WINDOWS, draw_view, draw_window, grid_boxes
from modeling_setcrop.data.editor import read_editor_images

GOOD = {
    "photo": "a.jpg",
    "split": "train",
    "crops": [[0.1, 0.0, 0.9, 0.8, 4.0], [0.2, 0.1, 0.8, 0.9, 3.5]],
    "whole": 3.0,
    "subjects": [[0.2, 0.2, 0.4, 0.4, 0.5]],
    "square": 0.4,
    "slim": 0.3,
}


@pytest.fixture
def folder(tmp_path):
    def write(*entries, name="labels.jsonl"):
        for photo in ("a.jpg", "b.jpg"):
            Image.new("RGB", (90, 60), (120, 90, 60)).save(tmp_path / photo)
        text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)
        opened = gzip.open if name.endswith(".gz") else open
        with opened(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(text)
        return tmp_path

    return write


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.jsonl.gz"])
def test_rows_have_crops_in_pixels_with_ratings(folder, name):
    people = {"photo": "b.jpg", "split": "val", "people": [0.0, 0.0, 0.5, 1.0], "crops": GOOD["crops"]}
    splits = load("editor", folder(GOOD, people, {**GOOD, "split": "fcdb_test"}, name=name))
    row = splits["train"][0]
    assert len(splits["train"]) == 1
    np.testing.assert_allclose(row["boxes"], [[9, 0, 81, 48], [18, 6, 72, 54], [0, 0, 90, 60]], atol=1e-4)
    np.testing.assert_allclose(row["scores"], [4.0, 3.5, 3.0])
    assert row["good"] == [True, True, False]
    row = splits["validation"][0]
    np.testing.assert_allclose(row["boxes"][0], [0, 0, 45, 60])
    np.testing.assert_allclose(row["scores"], [4.0, 4.0, 3.5])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{not json", "not a line of JSON"),
        ([1, 2], "expected an object with 'photo' and 'crops' or 'people', not [1, 2]"),
        ({**GOOD, "photo": 3}, "'photo' must name the image's file, not 3"),
        ({**GOOD, "photo": ""}, "'photo' must name the image's file"),
        ({**GOOD, "split": 5}, "'split' must be a name, not 5"),
        ({**GOOD, "crops": "all"}, "'crops' must be a list of bounding boxes, not \"all\""),
        ({**GOOD, "crops": [[0.5, 0, 0.4, 1, 4]]}, "'crops', number 1: a box is x1, y1, x2, y2 in 0..1"),
        ({**GOOD, "crops": [[0, 0, 1200, 800, 4]]}, "not [0, 0, 1200, 800, 4]"),
        ({**GOOD, "crops": [[0, 0, 1, 1, 4], [0, 0, 1, 1]]}, "'crops', number 2: expected the numbers"),
        ({**GOOD, "crops": [[0, 0, "a", 1, 4]]}, "'crops', number 1: expected the numbers"),
        ({**GOOD, "crops": [[0, 0, 1, 1, True]]}, "'crops', number 1: expected the numbers"),
        ({**GOOD, "crops": [[0, 0, 1, 1, 9]]}, "'crops', number 1: a rating must lie in 1..5, not 9"),
        ({**GOOD, "people": 7}, "'people': expected the numbers x1, y1, x2, y2, not 7"),
        ({**GOOD, "people": [[0, 0, 1, 1]]}, "'people': expected the numbers x1, y1, x2, y2"),
        ({**GOOD, "faces": [[0, 0, 1, 2]]}, "'faces', number 1: a box is"),
        ({**GOOD, "subjects": [[0, 0, 1, 1, 2]]}, "'subjects', number 1: an importance must lie in 0..1, not 2"),
        ({**GOOD, "whole": "good"}, "'whole' must lie in 1..5, not \"good\""),
        ({**GOOD, "square": 1.5}, "'square' must lie in 0..1, not 1.5"),
        ({**GOOD, "slim": None}, "'square' and 'slim' go together"),
        ({**GOOD, "subject": []}, "there is no field 'subject'; did you mean 'subjects'?"),
        ({"photo": "a.jpg"}, "neither 'crops' nor 'people'"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_is_read(folder, broken, message):
    problems = Problems()
    found = list(read_editor_images(folder(broken, GOOD), problems))
    assert [image.line for image in found] == [2]
    assert len(problems.found) == 1
    assert message in problems.found[0].message and problems.found[0].line == 1
    assert len(problems.found[0].message) < 200


def test_what_the_images_show_to_be_wrong_is_named_with_its_line_too(folder):
    entries = [
        GOOD,
        {**GOOD, "photo": "none.jpg"},
        {**GOOD, "crops": [[0, 0, 1, 1, 2]]},
        {**GOOD, "photo": "b.jpg", "split": "trian"},
        {**GOOD, "photo": "b.jpg", "split": "fcdb_test", "photographer": "their own record"},
    ]
    library = folder(*entries)
    problems = Problems()
    splits = load("editor", library, problems=problems)
    assert [(problem.line, problem.file) for problem in problems.found] == [
        (line, str(library / "labels.jsonl")) for line in (2, 3, 4)
    ]
    missing, twice, split = [problem.message for problem in problems.found]
    assert missing == f"{library / 'none.jpg'} is not a readable image (no such file)"
    assert twice == "'photo': line 1 has labels of this image"
    assert split == "'split': 'trian' is neither trained nor validated on; did you mean 'train'?"
    np.testing.assert_allclose(splits["train"][0]["scores"], [4.0, 3.5, 3.0])


def test_inspect_names_every_problem_if_asked(folder):
    library = folder(GOOD, *[{**GOOD, "whole": 5 + line} for line in range(1, 9)])
    command = ["data", "inspect", str(library), "--layout", "editor"]
    short, full = (CliRunner().invoke(app, [*command, *more]).stdout for more in ([], ["--all"]))
    assert short.count("'whole' must lie in 1..5") == 5 and "... and 3 more (--all names them)" in short
    assert full.count("'whole' must lie in 1..5") == 8 and "more" not in full


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"labels\.jsonl"):
        load("editor", tmp_path)


def test_inspect_says_what_is_labelled(tmp_path):
    library = write_editor(tmp_path / "library")
    result = CliRunner().invoke(app, ["data", "inspect", str(library), "--layout", "editor"])
    assert result.exit_code == 0, result.output
    counts = "crops 6, people 4, whole 8, subjects 8, square 6, slim 6"
    assert f"labels that rate any crop, and images that have them: {counts}" in result.stdout


def test_views_rate_their_boxes_as_the_whole_image_does(folder):
    (entry,) = read_editor_images(folder(GOOD), Problems())
    image = Image.new("RGB", (90, 60), (120, 90, 60))
    image.putpixel((0, 0), (255, 255, 255))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        window = draw_window(entry.labels, "editors", 1.5, rng)
        assert (window[:2] <= [0.2, 0.1]).all() and (window[2:] >= [0.8, 0.8]).all()  # holds one of the crops
        view = draw_view(image, entry.labels, window, (96, 64), "editors", np.random.default_rng(seed))
        assert view.image.size == (96, 64) and view.labels.importance_map((4, 6)).shape == (4, 6)
        assert view.boxes.shape == (BOXES, 4) and (view.boxes[:, 2:] > view.boxes[:, :2]).all()
        assert view.windows.shape == (FAMILIES, WINDOWS, 4) and view.window_fit.max() <= 1 + 1e-9
        # Where the view is not mirrored, its boxes are the image's, and their ratings with them.
        offset, scale = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
        plain = rate_boxes(view.boxes * scale + offset, entry.labels)
        mirrored = view.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        turned = rate_boxes(mirrored * scale + offset, entry.labels)
        assert np.allclose(view.ratings, plain) or np.allclose(view.ratings, turned)


def test_window_families_peak_where_the_labels_say(folder):
    (entry,) = read_editor_images(folder(GOOD), Problems())
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    image = Image.new("RGB", (90, 60))
    for seed in range(10):
        view = draw_view(image, entry.labels, whole, (96, 64), "editors", np.random.default_rng(seed))
        best = view.windows[0][view.window_fit[0].argmax()]
        centre = (best[0] + best[2]) / 2
        assert min(abs(centre - 0.4), abs(centre - 0.6)) < 0.05  # 0.6: mirrored
        assert view.family_weight[0] == 1


def test_grid_boxes_are_those_of_grid_anchor_cropping():
    boxes = grid_boxes(1.0)
    assert len(boxes) == 90 and (box_iou(boxes, boxes).argmax(1) == np.arange(90)).all()
    assert len(grid_boxes(30.0)) == 1  # no candidate of an allowed shape: the whole image


def test_a_window_that_cuts_a_face_is_worth_less_than_one_that_keeps_it(folder):
    labels = {**GOOD, "square": 0.34, "slim": 0.2}  # the square window runs from the left edge
    face = {**labels, "photo": "b.jpg", "faces": [[0.6, 0.1, 0.75, 0.4]]}
    plain, with_face = read_editor_images(folder(labels, face), Problems())
    np.testing.assert_array_equal(with_face.labels.faces, [[0.6, 0.1, 0.75, 0.4]])
    image, whole = Image.new("RGB", (96, 64)), np.array([0.0, 0.0, 1.0, 1.0])
    drawn = [
        draw_view(image, entry.labels, whole, (96, 64), "editors", np.random.default_rng(3))
        for entry in (plain, with_face)
    ]
    squares = drawn[1].windows[0]
    np.testing.assert_array_equal(squares, drawn[0].windows[0])
    loss = drawn[0].window_fit[0] - drawn[1].window_fit[0]
    left, right = squares[:, 0], squares[:, 2]
    # Mirrored or not, the windows that hold the face whole lose nothing, those that lose all of it lose 0.6.
    face = np.array([0.6, 0.75]) if squares[drawn[0].window_fit[0].argmax(), 0] < 0.2 else np.array([0.25, 0.4])
    keeps, loses = (left <= face[0]) & (right >= face[1]), (left >= face[1]) | (right <= face[0])
    assert keeps.any() and loss[keeps] == pytest.approx(0)
    assert not loses.any() or loss[loses] == pytest.approx(0.6)
    assert (loss >= -1e-9).all() and loss.max() == pytest.approx(0.6)
