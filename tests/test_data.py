"""The data sets' readers, on real files and on files written in each format's exact form."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from modeling_setcrop.cli import app
from modeling_setcrop.data import FEATURES, DataError, Problems, gaic, load
from modeling_setcrop.data import cpc as cpc_reader
from modeling_setcrop.data.inspect import check, summarise
from modeling_setcrop.data.reading import boxes_inside, held_out
from modeling_setcrop.data.saved import save
from modeling_setcrop.data.schema import good_or_best


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what the tests read out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_image(path: Path, size: tuple[int, int] = (120, 80), orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size, (200, 30, 30)).save(path, exif=exif)
    return path


def annotation(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def gaic_v2(root: Path) -> Path:
    """One image a split, in GAICD version 2's form."""
    for part, score in (("train", 4.5), ("val", 3.0), ("test", 4.0)):
        write_image(root / "images" / part / f"{part}.jpg")
        annotation(
            root / "annotations" / part / f"{part}.txt",
            f"   3    5   76  115 {score:.2f}",
            "   3    5   70  115 2.00",
            "  10   15   70  105 -2",
        )
    return root


def cpc(
    root: Path, count: int = 1, votes: list[list[int]] | None = None, boxes: list[list[int]] | None = None
) -> Path:
    votes = votes or [[4, 3, 0], [2, 2, 1]]
    boxes = boxes or [[0, 0, 100, 80], [2, 0, 100, 80], [60, 40, 120, 80]]
    for index in range(count):
        write_image(root / "images" / f"{index}.jpg")
        inner = json.dumps({"scores": votes, "bboxes": boxes})
        annotation(root / "CollectedAnnotationsRaw" / f"{index}.jpg.txt", json.dumps(inner))
    write_image(root / "images" / "unlabelled.jpg")
    return root


def flms(root: Path, entries: list[tuple[str, list[list[int]]]]) -> Path:
    names = np.empty((len(entries), 1), dtype=[("filename", "O"), ("bbox", "O")])
    for index, (name, boxes) in enumerate(entries):
        write_image(root / "image" / name)
        names[index, 0] = (name, np.array(boxes, dtype=float))
    savemat(root / "500_image_dataset.mat", {"img_gt": names})
    return root


def fcdb(root: Path) -> Path:
    def entry(name: str, crop: list[int]) -> dict:
        return {"url": f"https://farm5.staticflickr.com/1/{name}", "flickr_photo_id": 1, "crop": crop}

    write_image(root / "images" / "a_b.jpg")
    write_image(root / "images" / "c_d.jpg")
    training = [entry("a_b.jpg", [10, 5, 100, 60]), entry("gone.jpg", [0, 0, 5, 5])]
    (root / "cropping_training_set.json").write_text(json.dumps(training))
    (root / "cropping_testing_set.json").write_text(json.dumps([entry("c_d.jpg", [0, 0, 120, 80])]))
    return root


def folder(root: Path, *entries: dict | str) -> Path:
    write_image(root / "a.jpg")
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    annotation(root / "metadata.jsonl", *lines)
    return root


def test_gaic_version_2_gives_official_splits_and_pixel_boxes(tmp_path):
    splits = load("gaic", gaic_v2(tmp_path / "set"))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert splits["train"].features == FEATURES
    row = splits["train"][0]
    assert row["image"].size == (120, 80)
    assert (row["image_id"], row["width"], row["height"], row["split"]) == ("train", 120, 80, "train")
    # y1 x1 y2 x2 in the file, x1 y1 x2 y2 here; the crop scored -2 is gone.
    assert row["boxes"] == [[5, 3, 115, 76], [5, 3, 115, 70]]
    assert row["scores"] == [4.5, 2.0]
    assert row["good"] == [True, False]


def test_a_image_without_good_crops_takes_its_best_ones(tmp_path):
    row = load("gaic", gaic_v2(tmp_path / "set"))["validation"][0]
    assert (row["scores"], row["good"]) == ([3.0, 2.0], [True, False])
    assert good_or_best(np.array([3.0, 3.0, 1.0]), np.zeros(3, bool)).tolist() == [True, True, False]


def test_gaic_version_1_on_the_real_sample(shared_data):
    problems = Problems()
    splits = load("gaic", shared_data / "gaicd_sample", problems=problems)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "test": 4}
    assert not problems.found
    with gzip.open(shared_data / "labels" / "gaic_v1.json.gz", "rt") as file:
        labels = json.load(file)
    for row in splits["test"]:
        crops = np.array(labels[f"{row['image_id']}.jpg"]["crops"])
        np.testing.assert_allclose(row["boxes"], crops[:, [1, 0, 3, 2]])
        np.testing.assert_allclose(row["scores"], crops[:, 4], atol=1e-6)
        assert row["image"].size == (row["width"], row["height"])


def test_gaic_version_1_holds_out_36_of_1036_training_images():
    names = [f"{index}" for index in range(1036)]
    picked = held_out(names, gaic.V1_VALIDATION_SHARE, gaic.V1_VALIDATION_SEED)
    assert len(picked) == 36
    assert picked == held_out(reversed(names), gaic.V1_VALIDATION_SHARE, gaic.V1_VALIDATION_SEED)


def test_cpc_scores_are_mean_votes_and_near_duplicates_are_not_good(tmp_path):
    (row,) = load("cpc", cpc(tmp_path / "set"))["train"]
    # Votes 0..4 become ratings 1..5.
    assert row["scores"] == [4.0, 3.5, 1.5]
    assert row["rating_scale"] == [0, 4]
    assert row["boxes"] == [[0, 0, 100, 80], [2, 0, 100, 80], [60, 40, 120, 80]]
    # The second has a mean of at least 2, but overlaps the better first one by 0.98.
    assert row["good"] == [True, False, False]


def test_cpc_holds_out_the_published_test_images_and_five_hundred_for_validation(tmp_path):
    splits = load("cpc", cpc(tmp_path / "set", count=22))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 19, "validation": 1, "test": 2}
    names = {f"{index}.jpg" for index in range(10797)}
    test = held_out(names, cpc_reader.TEST_SHARE, cpc_reader.TEST_SEED)
    validation = held_out(names - test, cpc_reader.VALIDATION_SHARE, cpc_reader.VALIDATION_SEED)
    assert (len(test), len(validation), len(test & validation)) == (1000, 500, 0)
    # The test images are those that were held out before there was a validation split.
    assert sorted(test)[:3] == ["1.jpg", "10006.jpg", "10011.jpg"]


def test_flms_43_has_all_427_crops(shared_data):
    problems = Problems()
    rows = load("flms", shared_data / "flms43", problems=problems)["test"]
    assert (len(rows), sum(len(boxes) for boxes in rows["boxes"])) == (43, 427)
    assert rows[0]["scores"] is None
    assert all(all(good) for good in rows["good"])
    # One crop reaches eight pixels below its image.
    assert [problem.kind for problem in problems.found] == ["box outside the image"]
    with gzip.open(shared_data / "labels" / "flms.json.gz", "rt") as file:
        labels = json.load(file)
    crops = np.array(labels[f"{rows[0]['image_id']}.jpg"])
    np.testing.assert_allclose(rows[0]["boxes"], crops[:, [1, 0, 3, 2]])


def test_flms_leaves_out_and_names_failed_annotators(tmp_path):
    root = flms(tmp_path / "set", [("a.jpg", [[0, 0, 80, 120], [-1, -1, -1, -1]]), ("b.jpg", [[10, 20, 70, 100]])])
    problems = Problems()
    rows = load("flms", root, problems=problems)["test"]
    assert rows["boxes"][:] == [[[0, 0, 120, 80]], [[20, 10, 100, 70]]]
    assert [problem.kind for problem in problems.found] == ["annotator failed"]
    assert "entry 1 (a.jpg), crop 2" in str(problems.found[0])


def test_fcdb_keeps_its_splits_and_passes_over_images_gone_from_flickr(tmp_path):
    problems = Problems()
    splits = load("fcdb", fcdb(tmp_path / "set"), problems=problems)
    assert splits["train"]["boxes"][:] == [[[10, 5, 110, 65]]]
    assert splits["test"]["boxes"][:] == [[[0, 0, 120, 80]]]
    assert splits["train"][0]["scores"] is None
    assert not problems.found


def test_fcdb_reads_the_official_files(shared_data, tmp_path):
    with open(shared_data / "labels" / "fcdb" / "cropping_testing_set.json") as file:
        entries = json.load(file)[:3]
    root = tmp_path / "set"
    for entry in entries:
        x, y, width, height = entry["crop"]
        write_image(root / entry["url"].rsplit("/", 1)[-1], (x + width, y + height))
    (root / "cropping_testing_set.json").write_text(json.dumps(entries))
    rows = load("fcdb", root)["test"]
    expected = [[[x, y, x + width, y + height]] for x, y, width, height in (entry["crop"] for entry in entries)]
    assert rows["boxes"][:] == expected


def test_folder_of_ones_own_images(tmp_path):
    box, small = [0, 0, 120, 80], [10, 10, 50, 50]
    root = folder(
        tmp_path / "set",
        {"file_name": "a.jpg", "boxes": [box, small], "scores": [2.5, 1.0]},
        {"file_name": "a.jpg", "boxes": [box, small], "good": [False, True], "split": "test"},
        {"file_name": "a.jpg", "boxes": [box, small], "split": "validation"},
    )
    splits = load("folder", root)
    assert splits["train"][0]["good"] == [True, False]
    assert (splits["test"][0]["scores"], splits["test"][0]["good"]) == (None, [False, True])
    assert splits["validation"][0]["good"] == [True, True]


class TestRatingScale:
    """Ratings on any scale become 1..5, and a scale that does not fit is refused."""

    @staticmethod
    def rated(root: Path, scores: list[float], **more: object) -> Path:
        boxes = [[0, 0, 120, 80], [10, 10, 50, 50], [0, 0, 60, 80]]
        return folder(root, {"file_name": "a.jpg", "boxes": boxes, "scores": scores, **more})

    @pytest.mark.parametrize(
        ("scale", "scores"), [((0, 1), [0.8, 0.75, 0.1]), ((1, 10), [9, 7.75, 2]), ((0, 100), [80, 75, 10])]
    )
    def test_a_given_scale_is_mapped_and_recorded(self, tmp_path, scale, scores):
        low, high = scale
        expected = [1 + 4 * (score - low) / (high - low) for score in scores]
        for root, told in ((tmp_path / "told", scale), (tmp_path / "said", None)):
            self.rated(root, scores, **({} if told else {"rating_scale": scale}))
            row = load("folder", root, rating_scale=told)["train"][0]
            assert row["scores"] == pytest.approx(expected)
            # 4 of 5 is three quarters of the way, on every scale.
            assert row["good"] == [True, True, False]
            assert row["rating_scale"] == list(scale)

    @pytest.mark.parametrize("scores", [[0.8, 0.75, 0.1], [9, 7.75, 2], [80, 75, 10]])
    @pytest.mark.parametrize("command", ["inspect", "convert", "evaluate", "train", "init"])
    def test_ratings_that_are_not_1_to_5_are_refused_by_every_command(self, tmp_path, scores, command, capsys):
        root = self.rated(tmp_path / "set", scores)
        options = {
            "inspect": ["data", "inspect", root, "--layout", "folder"],
            "convert": ["data", "convert", root, "--layout", "folder", "--out", tmp_path / "copy"],
            "evaluate": ["evaluate", "--data", root, "--layout", "folder", "--model", "none", "--split", "train"],
            "init": ["init", tmp_path / "start", "--data", root, "--layout", "folder"],
            "train": [
                "train",
                "--data",
                root,
                "--layout",
                "folder",
                "--model_name_or_path",
                root,
                "--output_dir",
                root,
            ],
        }
        result = CliRunner().invoke(app, [str(option) for option in options[command]])
        said = result.stderr or capsys.readouterr().err
        assert result.exit_code == 1
        assert "which is not within 1..5: say on which scale the ratings are" in said.splitlines()[-1]

    def test_inspect_reports_the_scale(self, tmp_path):
        root = self.rated(tmp_path / "set", [80, 75, 10])
        options = ["data", "inspect", str(root), "--layout", "folder", "--rating-scale", "0,100"]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.stderr
        assert "ratings given on the scale 0..100, mapped to 1..5" in result.output
        result = CliRunner().invoke(app, [*options[:-1], "good"])
        assert result.exit_code == 1 and "--rating-scale 'good': expected two numbers" in result.stderr

    def test_every_command_that_reads_a_data_set_can_be_told_the_scale(self):
        for words in (["data", "inspect"], ["data", "convert"], ["evaluate"], ["report"], ["calibrate"], ["init"]):
            told = CliRunner().invoke(app, [*words, "--help"])
            assert "--layout" in told.stdout and "--rating-scale" in told.stdout, words

    def test_a_layout_with_a_scale_of_its_own_takes_no_other(self, tmp_path):
        with pytest.raises(DataError, match="layout 'gaic' has its own scale"):
            load("gaic", gaic_v2(tmp_path / "set"), rating_scale=(0, 100))

    @pytest.mark.parametrize("scale", [(5, 1), (0, float("nan")), (1, 2, 3)])
    def test_a_scale_that_is_none_is_named(self, tmp_path, scale):
        with pytest.raises(DataError, match=r"rating_scale is .*lowest and the highest rating"):
            load("folder", self.rated(tmp_path / "set", [1, 2, 3]), rating_scale=scale)

    def test_copies_from_before_the_scale_was_recorded_are_read(self, tmp_path):
        splits = load("folder", self.rated(tmp_path / "set", [4.5, 2, 3]))
        save(splits.remove_columns("rating_scale"), tmp_path / "copy", "parquet")
        copy = load("saved", tmp_path / "copy")
        assert copy["train"][0]["scores"] == [4.5, 2, 3]
        assert summarise(copy)["train"].scales == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_refer_to_the_image_as_displayed(tmp_path, orientation):
    root = tmp_path / "set"
    write_image(root / "a.jpg", (120, 80), orientation)
    turned = orientation >= 5
    box = [0, 0, 80, 120] if turned else [0, 0, 120, 80]
    annotation(root / "metadata.jsonl", json.dumps({"file_name": "a.jpg", "boxes": [box]}))
    (row,) = load("folder", root)["train"]
    assert row["image"].size == (row["width"], row["height"]) == ((80, 120) if turned else (120, 80))
    assert row["boxes"] == [box]


BAD_GAIC_LINES = [
    ("3 5 76 115", "wrong number of fields", "has 4 fields"),
    ("3 5 76 115 4 9", "wrong number of fields", "has 6 fields"),
    ("3 5 x 115 4", "not a number", "'3 5 x 115 4'"),
    ("3 5 nan 115 4", "not a number", "nan"),
    ("3 5 76 115 nan", "score out of range", "nan"),
    ("3 5 76 115 5.5", "score out of range", "5.5"),
    ("3 5 76 115 -1", "score out of range", "-1"),
    ("3 5 96 115 4", "box outside the image", "120 x 80"),
    ("76 5 3 115 4", "empty box", "no area"),
]


@pytest.mark.parametrize(("line", "kind", "message"), BAD_GAIC_LINES)
def test_a_bad_gaic_line_is_named_and_the_others_stay(tmp_path, line, kind, message):
    root = gaic_v2(tmp_path / "set")
    file = annotation(root / "annotations" / "train" / "train.txt", "3 5 70 115 4.00", line, "3 5 76 110 3.00")
    problems = Problems()
    row = load("gaic", root, problems=problems)["train"][0]
    assert row["scores"] == [4.0, 3.0]
    (problem,) = problems.found
    assert (problem.kind, problem.file, problem.line) == (kind, str(file), 2)
    assert str(problem).startswith(f"{file}:2: ")
    assert message in str(problem)
    with pytest.raises(DataError, match=r"train\.txt:2"):
        load("gaic", root, problems=Problems(strict=True))


def test_missing_images_and_annotations_are_named(tmp_path):
    root = gaic_v2(tmp_path / "set")
    lonely = annotation(root / "annotations" / "val" / "lonely.txt", "0 0 10 10 4")
    bare = write_image(root / "images" / "test" / "bare.jpg")
    (root / "images" / "train" / "train.jpg").write_bytes(b"not an image")
    problems = Problems()
    splits = load("gaic", root, problems=problems)
    assert list(splits) == ["validation", "test"]
    found = {problem.kind: problem.file for problem in problems.found}
    assert found == {
        "annotation without image": str(lonely),
        "image without annotation": str(bare),
        "unreadable image": str(root / "images" / "train" / "train.jpg"),
    }


def test_a_file_name_that_is_not_text_is_named_and_left_out(tmp_path):
    root = gaic_v2(tmp_path / "set")
    os.rename(root / "images" / "train" / "train.jpg", root / "images" / "train" / os.fsdecode(b"\xff.jpg"))
    os.rename(root / "annotations" / "train" / "train.txt", root / "annotations" / "train" / os.fsdecode(b"\xff.txt"))
    problems = Problems()
    assert list(load("gaic", root, problems=problems)) == ["validation", "test"]
    assert [problem.kind for problem in problems.found] == ["unreadable image"]
    assert "\\udcff.jpg" in str(problems.found[0])


def test_odd_and_broken_images_are_read_or_named(shared_data, tmp_path):
    odd = shared_data / "odd"
    root = tmp_path / "set"
    root.mkdir()
    lines = []
    for file in sorted(odd.iterdir()):
        (root / file.name).symlink_to(file)
        lines.append(json.dumps({"file_name": file.name, "boxes": [[0, 0, 1, 1]]}))
    annotation(root / "metadata.jsonl", *lines)
    problems = Problems()
    rows = load("folder", root, problems=problems)["train"]
    broken = {Path(problem.file).name for problem in problems.found}
    # A truncated file still has its header: it fails when it is decoded.
    assert broken == {"garbage.png", "header_only.jpg", "text_named.jpg", "zero_bytes.jpg"}
    for index, name in enumerate(rows["image_id"]):
        if name == "truncated":
            with pytest.raises(OSError, match="truncated"):
                rows[index]
        else:
            row = rows[index]
            assert row["image"].size == (row["width"], row["height"])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("not json", "undecodable annotation"),
        (json.dumps("not json inside"), "undecodable annotation"),
        (json.dumps(json.dumps({"scores": [[1]]})), "undecodable annotation"),
        (json.dumps(json.dumps({"scores": [[1, 2]], "bboxes": [[0, 0, 5, 5]]})), "wrong number of fields"),
    ],
)
def test_a_cpc_line_that_does_not_decode_is_named(tmp_path, content, kind):
    root = cpc(tmp_path / "set", count=2)
    file = annotation(root / "CollectedAnnotationsRaw" / "1.jpg.txt", content)
    problems = Problems()
    splits = load("cpc", root, problems=problems)
    assert sum(len(rows) for rows in splits.values()) == 1
    assert [(problem.kind, problem.file, problem.line) for problem in problems.found] == [(kind, str(file), 1)]


def test_cpc_votes_out_of_range_are_named(tmp_path):
    problems = Problems()
    (row,) = load("cpc", cpc(tmp_path / "set", votes=[[4, 9, 0]]), problems=problems)["train"]
    assert row["scores"] == [5.0, 1.0]
    assert "crop 2 has a vote" in str(problems.found[0])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("{", "undecodable annotation"),
        ("[]", "wrong number of fields"),
        ({"file_name": "none.jpg", "boxes": [[0, 0, 9, 9]]}, "annotation without image"),
        ({"file_name": "a.jpg", "boxes": [[0, 0, 9]]}, "wrong number of fields"),
        ({"file_name": "a.jpg", "boxes": []}, "wrong number of fields"),
        ({"file_name": "a.jpg", "boxes": [[0, 0, 9, 9]], "scores": [1, 2]}, "score out of range"),
        ({"file_name": "a.jpg", "boxes": [[0, 0, 9, 9]], "good": ["yes"]}, "wrong number of fields"),
        ({"file_name": "a.jpg", "boxes": [[0, 0, 9, 9]], "split": "dev"}, "unknown split"),
    ],
)
def test_a_bad_folder_line_is_named(tmp_path, line, kind):
    root = folder(tmp_path / "set", {"file_name": "a.jpg", "boxes": [[0, 0, 9, 9]]}, line)
    problems = Problems()
    assert len(load("folder", root, problems=problems)["train"]) == 1
    assert [(problem.kind, problem.line) for problem in problems.found] == [(kind, 2)]


@pytest.mark.parametrize("layout", ["gaic", "cpc", "flms", "fcdb", "folder", "saved"])
def test_a_folder_of_another_kind_is_refused(tmp_path, layout):
    with pytest.raises(DataError, match="needs"):
        load(layout, tmp_path)


def test_an_unknown_layout_and_an_empty_set_are_refused(tmp_path):
    with pytest.raises(DataError, match="unknown layout 'voc': choose one of gaic, cpc"):
        load("voc", tmp_path)
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match="no usable image"):
        load("gaic", tmp_path)


def test_problems_are_logged_when_nobody_collects_them(tmp_path, caplog):
    load("gaic", _with_bad_line(tmp_path))
    assert "1 bad entries (not a number: 1)" in caplog.text


def test_a_changed_data_set_is_read_anew_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    root = _with_bad_line(tmp_path)
    first, second, third = Problems(), Problems(), Problems()
    load("gaic", root, problems=first)
    with monkeypatch.context() as patch:
        patch.setattr(gaic, "read_annotation", None)
        load("gaic", root, problems=second)
    assert first.found == second.found != []
    annotation(root / "annotations" / "train" / "train.txt", "3 5 70 115 4.00")
    assert len(load("gaic", root, problems=third)["train"][0]["boxes"]) == 1
    assert not third.found


@pytest.mark.parametrize("change", ["replaced", "added", "linked"])
def test_a_change_in_a_subfolder_is_noticed(tmp_path, change):
    root = tmp_path / "set"
    place = tmp_path / "elsewhere" if change == "linked" else root / "album"
    write_image(place / "a.jpg")
    root.mkdir(exist_ok=True)
    if change == "linked":
        (root / "album").symlink_to(place)
    entries = [{"file_name": f"album/{name}.jpg", "boxes": [[0, 0, 60, 60]]} for name in "ab"]
    annotation(root / "metadata.jsonl", *map(json.dumps, entries))
    assert load("folder", root)["train"]["width"][:] == [120]
    if change == "added":
        write_image(place / "b.jpg")
        assert load("folder", root)["train"]["image_id"][:] == ["album/a", "album/b"]
    else:
        write_image(place / "a.jpg", (100, 80))
        assert load("folder", root)["train"]["width"][:] == [100]


def test_a_link_that_leads_back_up_is_followed_once(tmp_path):
    root = folder(tmp_path / "set", {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60]]})
    (root / "again").symlink_to(root)
    assert len(load("folder", root)["train"]) == 1


@pytest.mark.parametrize("layout", ["gaic", "cpc", "fcdb", "folder"])
def test_a_byte_order_mark_costs_nothing(tmp_path, layout):
    root = {"gaic": gaic_v2, "cpc": cpc, "fcdb": fcdb}.get(layout, lambda root: root)(tmp_path / "set")
    if layout == "folder":
        folder(root, {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60]]})
    expected = load(layout, root)["train"]["boxes"][:]
    for file in [*root.rglob("*.txt"), *root.rglob("*.json*")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    problems = Problems()
    assert load(layout, root, problems=problems)["train"]["boxes"][:] == expected
    assert not problems.found


def test_two_images_of_one_name_are_named(tmp_path):
    root = gaic_v2(tmp_path / "set")
    other = write_image(root / "images" / "train" / "train.png")
    problems = Problems()
    assert load("gaic", root, problems=problems)["train"]["image_id"][:] == ["train"]
    assert [(problem.kind, problem.file) for problem in problems.found] == [("several images of one name", str(other))]
    assert "left out beside train.jpg" in str(problems.found[0])


@pytest.mark.parametrize("name", ["../a.jpg", "album/../../a.jpg", "/tmp/a.jpg"])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path, name):
    write_image(tmp_path / "a.jpg")
    root = folder(tmp_path / "set", {"file_name": "a.jpg", "boxes": [[0, 0, 9, 9]]})
    annotation(
        root / "metadata.jsonl", *(json.dumps({"file_name": n, "boxes": [[0, 0, 9, 9]]}) for n in ("a.jpg", name))
    )
    problems = Problems()
    assert len(load("folder", root, problems=problems)["train"]) == 1
    assert [(problem.kind, problem.line) for problem in problems.found] == [("outside the folder", 2)]


def test_an_annotation_of_ninety_megabytes_is_named_and_not_read(tmp_path):
    root = gaic_v2(tmp_path / "set")
    large = root / "annotations" / "train" / "train.txt"
    with open(large, "wb") as file:
        file.truncate(90_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problems = Problems()
    assert list(load("gaic", root, problems=problems)) == ["validation", "test"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 40
    assert str(problems.found[0]).startswith(f"{large}: cannot be read (90 MB")


class TestCheck:
    """What `inspect` finds beyond single entries."""

    @staticmethod
    def found(root: Path, layout: str = "folder") -> list[tuple[str, str]]:
        problems = Problems()
        check(load(layout, root, problems=problems), problems)
        return [(problem.kind, problem.message) for problem in problems.found]

    def test_nothing_is_wrong_with_what_is_right(self, tmp_path):
        root = gaic_v2(tmp_path / "set")
        write_image(root / "images" / "val" / "val.jpg", (119, 80))
        write_image(root / "images" / "test" / "test.jpg", (118, 80))
        assert self.found(root, "gaic") == []

    def test_a_half_truncated_image_is_named(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
        root = folder(tmp_path / "set", {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60]]})
        Image.fromarray(noise).save(root / "a.jpg")
        content = (root / "a.jpg").read_bytes()
        (root / "a.jpg").write_bytes(content[: len(content) // 2])
        ((kind, message),) = self.found(root)
        assert kind == "undecodable image" and "truncated" in message

    def test_an_image_in_two_splits_is_named_whatever_its_name(self, tmp_path):
        root = folder(
            tmp_path / "set",
            {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60]], "split": "train"},
            {"file_name": "copy.jpg", "boxes": [[0, 0, 60, 60]], "split": "test"},
        )
        (root / "copy.jpg").write_bytes((root / "a.jpg").read_bytes())
        assert self.found(root) == [("image in several splits", "is in train (a.jpg), test (copy.jpg)")]

    def test_conflicting_lines_are_named(self, tmp_path):
        root = folder(
            tmp_path / "set",
            {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60], [0, 0, 60, 60]], "scores": [2, 4]},
            {"file_name": "a.jpg", "boxes": [[0, 0, 50, 60]], "scores": [3]},
        )
        assert self.found(root) == [
            ("conflicting ratings", "box [0, 0, 60, 60] is rated 2 and 4"),
            ("image given twice", "has several entries in train"),
        ]

    def test_the_command_says_it_and_can_do_without(self, tmp_path):
        line = {"file_name": "a.jpg", "boxes": [[0, 0, 60, 60]]}
        root = folder(tmp_path / "set", line, {**line, "split": "test"})
        options = ["data", "inspect", str(root), "--layout", "folder"]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0 and "problem: image in several splits: 1" in result.output
        assert "no problems found" in CliRunner().invoke(app, [*options, "--no-decode"]).output


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["data", "inspect", ".", "--layout", "gaic"], "train"),
        (["data", "convert", ".", "--layout", "gaic", "--out", "o"], "train"),
        (["evaluate", "--data", ".", "--layout", "gaic"], "evaluate"),
        (["train", "--data", "."], "train"),
        (["init", "start", "--data", "."], "train"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_command_without_its_extra_names_it_in_one_line(command, extra):
    code = "import sys; sys.modules['datasets'] = sys.modules['accelerate'] = None\n"
    code += f"from modeling_setcrop.cli import app; app({command!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("setcrop ") and line.endswith(f": pip install 'setcrop[{extra}]'")


def test_init_names_a_data_set_without_a_training_split(shared_data, tmp_path):
    options = ["init", str(tmp_path / "start"), "--data", str(shared_data / "flms43"), "--layout", "flms"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 1
    assert "has no split 'train' to take anchors from, only test" in result.stderr


@given(st.lists(st.tuples(*[st.floats(-20, 140, width=32)] * 4), min_size=1, max_size=10))
def test_kept_boxes_always_lie_inside_the_image(values):
    problems = Problems()
    boxes = np.array(values)
    clipped, keep = boxes_inside(boxes, (120, 80), "f", range(len(boxes)), problems)
    assert len(problems.found) == (~keep).sum()
    kept = clipped[keep]
    assert (kept >= 0).all() and (kept <= [120, 80, 120, 80]).all()
    assert (kept[:, 2:] > kept[:, :2]).all()
    assert (np.abs(kept - boxes[keep]) <= 1).all()


@settings(max_examples=30)
@given(text=st.text(alphabet="0123456789 .-na\n", max_size=60))
def test_any_annotation_text_is_read_without_an_exception(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_text(text)
    boxes, scores, lines = gaic.read_annotation(file, Problems())
    assert boxes.shape == (len(scores), 4) and len(lines) == len(scores)
    assert ((scores >= 1) & (scores <= 5)).all()


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_a_converted_copy_is_the_same_without_the_originals(tmp_path, form):
    root = gaic_v2(tmp_path / "set")
    original = load("gaic", root)
    expected = [{**row, "image": row["image"].tobytes()} for row in original["train"]]
    save(original, tmp_path / "copy", form)
    os.rename(root, tmp_path / "moved")
    copy = load("saved", tmp_path / "copy")
    assert list(copy) == ["train", "validation", "test"]
    assert copy["train"].features == FEATURES
    assert [{**row, "image": row["image"].tobytes()} for row in copy["train"]] == expected


def test_saving_does_not_touch_an_existing_folder(tmp_path):
    splits = load("gaic", gaic_v2(tmp_path / "set"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        save(splits, tmp_path / "copy", "parquet")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mine.txt"]


def test_summary_counts_scores_and_good_crops(tmp_path):
    summary = summarise(load("gaic", gaic_v2(tmp_path / "set")))["train"]
    assert (summary.images, summary.rated_images) == (1, 1)
    assert (summary.sizes, summary.crops, summary.good) == ((120, 120.0, 120), (2, 2.0, 2), (1, 1.0, 1))
    assert summary.histogram.sum() == 2


def test_inspect_command_shows_counts_and_names_problems(tmp_path):
    root = _with_bad_line(tmp_path)
    result = CliRunner().invoke(app, ["data", "inspect", str(root), "--layout", "gaic"])
    assert result.exit_code == 0
    assert "train: 1 images, 1 with ratings" in result.output
    assert "problem: not a number: 1" in result.output
    assert "train.txt:1: '3 5 x 115 4' is not five numbers" in result.output
    result = CliRunner().invoke(app, ["data", "inspect", str(root), "--layout", "gaic", "--strict"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "train.txt:1" in result.stderr


def test_convert_command_writes_a_copy_that_loads(tmp_path):
    root = gaic_v2(tmp_path / "set")
    arguments = ["data", "convert", str(root), "--layout", "gaic", "--out", str(tmp_path / "copy")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "exists already" in result.stderr


def test_convert_command_pushes_to_the_hub(tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(
        datasets.DatasetDict, "push_to_hub", lambda self, repo, private: pushed.update({repo: (list(self), private)})
    )
    root = gaic_v2(tmp_path / "set")
    arguments = ["data", "convert", str(root), "--layout", "gaic", "--push-to-hub", "me/crops", "--private"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert pushed == {"me/crops": (["train", "validation", "test"], True)}


def test_memory_does_not_grow_with_100_000_images(tmp_path):
    root = tmp_path / "set"
    write_image(root / "a.jpg")
    line = json.dumps({"file_name": "a.jpg", "boxes": [[0, 0, 120, 80], [5, 5, 100, 70]] * 4, "scores": [3, 4] * 4})
    count = 100_000
    with open(root / "metadata.jsonl", "w") as file:
        file.writelines(f"{line}\n" for _ in range(count))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = load("folder", root)["train"]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(rows) == count
    assert rows[count - 1]["image"].size == (120, 80)
    # As Python objects the rows would take over 100 MB.
    assert grown < 40, f"{grown:.0f} MB"


def _with_bad_line(tmp_path: Path) -> Path:
    root = gaic_v2(tmp_path / "set")
    annotation(root / "annotations" / "train" / "train.txt", "3 5 x 115 4", "3 5 70 115 4.00")
    return root
