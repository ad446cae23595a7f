"""Folder runs and the commands over them: resumable, safe to interrupt, and plain about what failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

import modeling_setcrop
from modeling_setcrop.cli import app
from modeling_setcrop.image_reading import ImageFileError
from modeling_setcrop.runs.cropping import crop_sources
from modeling_setcrop.runs.journal import JOURNAL, Journal
from modeling_setcrop.runs.manifest import write_manifest
from modeling_setcrop.runs.naming import CropPlan
from modeling_setcrop.runs.scheduling import MemoryBudget, in_order, suggest_crops
from modeling_setcrop.runs.sources import Source, list_sources

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    assert modeling_setcrop.ImageCroppingPipeline
    return pipeline("image-cropping", model=str(tiny_checkpoint))


@pytest.fixture
def album(tmp_path):
    """Two folders of small images in two shapes, and one broken file."""
    folder = tmp_path / "album"
    for number in range(6):
        size = (90, 60) if number % 3 else (60, 90)
        path = folder / ("trip" if number % 2 else "home") / f"photo{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(60 * number).resize(size).convert("RGB").save(path)
    (folder / "home" / "broken.jpg").write_bytes(b"no image")
    return folder


def command(*arguments, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modeling_setcrop.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def files_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def run(cropper, album, out, *, name="{stem}", overwrite=False, dry_run=False, **options):
    errors: list[ImageFileError] = []
    photos = list_sources([album], errors.append, exclude=out)
    assert errors == []
    plan = CropPlan(out, name)
    journal = Journal(out, plan.signature("tiny", options))
    return list(crop_sources(cropper, photos, plan, options, journal, overwrite=overwrite, dry_run=dry_run))


def test_the_tree_is_mirrored_bad_files_are_reported_and_originals_stay(cropper, album, tmp_path):
    before = {file: file.read_bytes() for file in album.rglob("*.jpg")}
    reports = run(cropper, album, tmp_path / "out", aspect_ratio="1:1", top_k=1)
    failed = [report for report in reports if report.error is not None]
    assert [report.error.path.name for report in failed] == ["broken.jpg"]
    expected = {f"{'trip' if n % 2 else 'home'}/photo{n}.jpg" for n in range(6)}
    assert files_below(tmp_path / "out") == expected | {JOURNAL}
    for report in reports:
        for row in report.rows:
            with Image.open(tmp_path / "out" / row["file"]) as crop:
                assert crop.size == (row["width"], row["height"]) and crop.width == crop.height
    assert {file: file.read_bytes() for file in album.rglob("*.jpg")} == before


def test_a_second_run_skips_what_is_done_and_redoes_what_changed(cropper, album, tmp_path):
    out = tmp_path / "out"
    run(cropper, album, out, top_k=1)
    assert sum(report.skipped for report in run(cropper, album, out, top_k=1)) == 6
    (out / "trip" / "photo1.jpg").unlink()
    Image.new("RGB", (90, 60), "teal").save(album / "trip" / "photo5.jpg")
    redone = [report.source.stem for report in run(cropper, album, out, top_k=1) if not report.skipped]
    assert sorted(redone) == ["broken", "photo1", "photo5"]
    assert not any(report.skipped for report in run(cropper, album, out, top_k=1, aspect_ratio="1:1"))
    assert not any(report.skipped for report in run(cropper, album, out, top_k=1, aspect_ratio="1:1", overwrite=True))


def test_files_of_other_origin_are_not_replaced_unasked(cropper, album, tmp_path):
    target = tmp_path / "out" / "home" / "photo0.jpg"
    target.parent.mkdir(parents=True)
    target.write_text("someone's own")
    reports = run(cropper, album, tmp_path / "out", top_k=1)
    assert any("exists and is not a crop of it" in str(report.error) for report in reports)
    assert target.read_text() == "someone's own"
    run(cropper, album, tmp_path / "out", top_k=1, overwrite=True)
    assert Image.open(target).format == "JPEG"


def test_a_dry_run_writes_nothing(cropper, album, tmp_path):
    reports = run(cropper, album, tmp_path / "out", top_k=2, name="{stem}_{rank}", dry_run=True)
    assert sum(len(report.rows) for report in reports) == 12
    assert not (tmp_path / "out").exists()


def test_names_that_clash_are_refused(cropper, album, tmp_path):
    reports = run(cropper, album, tmp_path / "out", top_k=2, nms_iou=1.0, name="{stem}")
    assert all("use {rank} in the template" in str(r.error) for r in reports if r.source.stem != "broken")
    reports = run(cropper, album, tmp_path / "out", top_k=1, name="../../{stem}")
    assert all("outside" in str(r.error) for r in reports if r.source.stem != "broken")
    for template in ("{stem}_{colour}", "{0}", "{stem", "{stem.x}"):
        with pytest.raises(ValueError, match="name template"):
            CropPlan(tmp_path, template)


def test_images_that_share_a_stem_keep_apart(tmp_path):
    for name in ("a/one.jpg", "a/one.png", "a/two.jpg", "b/two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    errors: list[ImageFileError] = []
    photos = list_sources([tmp_path / "a", tmp_path / "b"], errors.append)
    assert [photo.stem for photo in photos] == ["one_jpg", "one_png", "two_jpg"]
    assert len(errors) == 1 and "would have the names" in str(errors[0])


def test_the_output_folder_is_not_searched(album):
    out = album / "crops"
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "old.jpg")
    assert len(list_sources([album], pytest.fail, exclude=out)) == 7


def test_suggestions_do_not_depend_on_batches_or_threads(cropper, album):
    photos = list_sources([album], pytest.fail)
    options = {"aspect_ratio": ["4:5", "16:9"], "top_k": 2}
    one = {s.source: s.result for s in suggest_crops(cropper, photos, options, batch_size=1, workers=1)}
    many = list(in_order(suggest_crops(cropper, photos, options, batch_size=4, workers=3), photos))
    assert [s.source for s in many] == photos
    assert {s.source: s.result for s in many} == one


def test_a_run_that_stops_early_records_what_it_wrote_and_goes_on(cropper, album, tmp_path):
    out = tmp_path / "out"
    photos = list_sources([album], pytest.fail, exclude=out)
    plan = CropPlan(out, "{stem}")
    journal = Journal(out, plan.signature("tiny", {"top_k": 1}))
    reports = crop_sources(cropper, photos, plan, {"top_k": 1}, journal, batch_size=1, workers=1)
    next(reports)
    next(reports)
    reports.close()
    written = files_below(out) - {JOURNAL}
    journal = Journal(out, {})
    assert written and all(journal.writer(file) is not None for file in written)
    assert not [file for file in written if file.endswith(".part")]
    with (out / JOURNAL).open("ab") as file:
        file.write(b'{"source": "half a li')
    reports = run(cropper, album, out, top_k=1)
    assert len(files_below(out)) == 7
    assert not any(report.error for report in reports if report.source.stem != "broken")
    for line in (out / JOURNAL).read_bytes().splitlines():
        assert line.startswith(b'{"source"')


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_the_manifest_lists_every_crop_and_every_failure(cropper, album, tmp_path, suffix):
    out = tmp_path / "out"
    photos = list_sources([album], pytest.fail, exclude=out)
    reports = run(cropper, album, out, top_k=2, name="{stem}_{rank}", aspect_ratio="1:1")
    path = tmp_path / f"crops{suffix}"
    plan = CropPlan(out, "{stem}_{rank}")
    journal = Journal(out, plan.signature("tiny", {"top_k": 2, "aspect_ratio": "1:1"}))
    write_manifest(path, journal.rows(photos), [report.error for report in reports if report.error])
    if suffix == ".csv":
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert rows[-1]["source"].endswith("broken.jpg") and "not an image" in rows[-1]["error"]
    assert len(rows) == 1 + sum(len(report.rows) for report in reports)
    for row in rows[:-1]:
        with Image.open(out / row["file"]) as crop:
            assert crop.size == (int(row["xmax"]) - int(row["xmin"]), int(row["ymax"]) - int(row["ymin"]))
    with pytest.raises(ValueError, match=r"use \.jsonl or \.csv"):
        write_manifest(tmp_path / "crops.txt", [], [])


def test_the_pixel_budget_holds_back_what_does_not_fit():
    budget, held, most = MemoryBudget(100), [0], [0]
    lock = threading.Lock()

    def hold(pixels):
        with budget(pixels):
            with lock:
                held[0] += min(pixels, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= min(pixels, 100)

    threads = [threading.Thread(target=hold, args=(pixels,)) for pixels in (60, 60, 30, 500, 10, 90) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 100


def test_crops_are_brought_down_to_width_and_never_blown_up(tmp_path):
    plan = CropPlan(tmp_path, "{stem}", width=300)
    assert plan.final_size((0, 0, 600, 400)) == (300, 200)
    assert plan.final_size((0, 0, 200, 100)) == (200, 100)
    both = CropPlan(tmp_path, "{stem}", width=300, height=200)
    assert both.final_size((0, 0, 601, 400)) == (300, 200)


@pytest.mark.parametrize(
    ("asked", "ratio", "box", "size"),
    [
        (
            {"width": 500, "height": 400},
            "",
            (0, 0, 800, 1000),
            (400, 500),
        ),  # the content is upright, whatever its mat is
        ({"width": 500, "height": 400}, "", (0, 0, 1000, 800), (500, 400)),
        ({"width": 1500}, "5:4", (0, 0, 2000, 2500), (1200, 1500)),
        ({"width": 1500}, "5:4", (0, 0, 2500, 2000), (1500, 1200)),
        ({"height": 300}, "original", (0, 0, 400, 600), (200, 300)),
        ({"height": 300}, "free", (0, 0, 400, 600), (200, 300)),
    ],
)
def test_sizes_turn_with_the_crop(asked, ratio, box, size, tmp_path):
    assert CropPlan(tmp_path, "{stem}", follow_orientation=True, **asked).final_size(box, ratio) == size


def test_a_dry_run_leaves_out_what_is_done_and_records_nothing(cropper, album, tmp_path):
    out = tmp_path / "out"
    run(cropper, album, out, top_k=1)
    (out / "trip" / "photo1.jpg").unlink()
    before = (out / JOURNAL).read_bytes()
    reports = run(cropper, album, out, top_k=1, dry_run=True)
    assert [report.source.stem for report in reports if report.image is not None] == ["photo1"]
    assert sum(report.skipped for report in reports) == 5 and (out / JOURNAL).read_bytes() == before
    reports = run(cropper, album, out, top_k=1, dry_run=True, overwrite=True)
    assert sum(report.image is not None for report in reports) == 6


def test_the_best_of_several_ratios_needs_no_ratio_in_its_name(tmp_path):
    sources = [Source(tmp_path / "a.jpg", Path(), "a")]
    plan = CropPlan(tmp_path / "out", "{stem}")
    plan.check_names(sources, ["16:9", "1:1"], 1, best_of=True)
    for top_k, best_of in ((1, False), (2, True)):
        with pytest.raises(ValueError, match="ratio"):
            plan.check_names(sources, ["16:9", "1:1"], top_k, best_of)


def test_a_manifest_has_rows_where_there_is_nothing_to_crop(tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "drawing.svg").write_text("<svg/>")
    manifest = tmp_path / "crops.csv"
    given = [str(tmp_path / "album"), str(tmp_path / "missing.jpg")]
    result = CliRunner().invoke(app, ["crop", *given, "--out", str(tmp_path / "out"), "--manifest", str(manifest)])
    assert result.exit_code == 1
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["source"]).name for row in rows] == ["drawing.svg", "album", "missing.jpg"]


def test_nothing_that_was_given_is_overwritten(album, tmp_path, tiny_checkpoint):
    """A map, a drawing or a copy has the name of an image: this one, another input, or somebody's own file."""
    model = ["--model", str(tiny_checkpoint)]
    home, copies = album / "home", tmp_path / "copies"
    image = home / "photo0.png"
    Image.new("RGB", (90, 60), "teal").save(image)
    Image.new("RGB", (90, 60), "red").save(home / "photo2_crops.jpg")
    copies.mkdir()
    Image.new("RGB", (90, 60), "red").save(copies / "photo2.jpg")
    before = {file: file.read_bytes() for folder in (home, copies) for file in folder.iterdir()}
    for arguments, part in (
        (["score", str(image), "--grid", "--heatmap", str(image), *model], "would overwrite the image itself"),
        (
            ["suggest", str(home / "photo2.jpg"), str(home / "photo2_crops.jpg"), "--annotate", str(home), *model],
            "photo2",
        ),
        (["suggest", str(home / "photo2.jpg"), "--write-metadata", str(copies), *model], "exists and is no copy"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1 and part in result.output, result.output
    after = {file: file.read_bytes() for file in before}
    assert after == before
    (copies / "photo2.jpg").unlink()
    for _ in range(2):  # its own copy is made anew
        assert CliRunner().invoke(app, arguments).exit_code == 0


def test_content_for_images_that_are_not_there_is_told(album, tmp_path, tiny_checkpoint):
    content = tmp_path / "content.jsonl"
    content.write_text('{"photo": "photo1.jpg", "keep": [[5, 5]]}\n{"photo": "foto3.jpg", "keep": [[5, 5]]}')
    arguments = ["suggest", str(album / "trip"), "--json", "--content", str(content), "--model", str(tiny_checkpoint)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "1 of 2 are no image here: foto3.jpg" in result.stderr


def test_commands_end_to_end(tiny_checkpoint, photos, album, tmp_path):
    """One real process each: what a person types, sees and finds on disk."""
    out = tmp_path / "out"
    photo = tmp_path / "one photo.jpg"
    with Image.open(photos[0]) as image:
        reduced = image.reduce(4)
    reduced.save(photo)
    model = ("--model", tiny_checkpoint)
    shown = command("suggest", photo, "--aspect-ratio", "16:9,square", "--annotate", tmp_path / "drawn.png", *model)
    assert shown.returncode == 0, shown.stderr
    assert "rank" in shown.stdout and "16:9" in shown.stdout and "focus point" in shown.stdout
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == reduced.size
    listed = command("suggest", "--json", photo, tmp_path / "gone.jpg", "--top-k", 1, *model)
    assert listed.returncode == 1
    assert listed.stderr.splitlines()[-1] == f"setcrop: {tmp_path / 'gone.jpg'}: no such file or folder"
    answer = json.loads(listed.stdout)
    assert answer["photo"] == photo.as_posix() and len(answer["crops"]) == 1
    arguments = ["crop", album, "--out", out, "--aspect-ratio", "16:9,1:1", "--format", "webp", *model]
    cropped = command(*arguments, "--manifest", tmp_path / "crops.jsonl")
    assert cropped.returncode == 1
    assert "12 crops of 6 images went to" in cropped.stdout and "1 failed" in cropped.stdout
    assert "broken.jpg: not an image that can be read" in cropped.stderr
    assert "trip/photo1_16x9.webp" in files_below(out) and len(files_below(out)) == 13
    assert len((tmp_path / "crops.jsonl").read_text().splitlines()) == 13


@pytest.mark.skipif(os.name == "nt", reason="interrupts are sent the POSIX way")
def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(tiny_checkpoint, tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for number in range(150):
        Image.linear_gradient("L").rotate(number).resize((320, 240)).convert("RGB").save(album / f"{number:03}.png")
    arguments = ["crop", album, "--out", out, "--model", tiny_checkpoint, "--batch-size", "2", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "modeling_setcrop.cli", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Where the tests themselves run in a shell's background, SIGINT is ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(out.glob("*.png")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 130 and "Interrupted" in output, output
    done = {file for file in files_below(out) if file != JOURNAL}
    assert 0 < len(done) < 150 and not [file for file in done if file.endswith(".part")]
    for file in done:
        with Image.open(out / file) as crop:
            crop.load()
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"{150 - len(done)} crops of" in again.stdout and f"{len(done)} were done before" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crop", "x.jpg", "--out", "o", "--aspect-ratio", "16:nine"], "aspect ratio '16:nine'"),
        (["crop", "x.jpg", "--out", "o", "--name", "{colour}"], "name template"),
        (["crop", "x.jpg", "--out", "o", "--format", "docx"], "unknown image format 'docx'"),
        (["crop", "x.jpg", "--out", "o", "--manifest", "m.txt"], "use .jsonl or .csv"),
        (["crop", "x.jpg", "--out", "o", "--manifest", f"{__file__}/m.csv"], "no file can be written there"),
        (["crop", "x.jpg", "--out", "o", "--keep", "1,a"], "--keep '1,a'"),
        (["crop", "examples/photos", "--out", "examples/photos"], "give another folder"),
        (["suggest", "x.jpg", "--min-area", "0.5", "--max-area", "0.2"], "larger than max_area"),
        (
            ["suggest", "examples/photos/kitten-on-lawn.jpg", "--model", "/nowhere/model"],
            "/nowhere/model: no such folder",
        ),
    ],
)
def test_wrong_options_are_one_line_and_status_1(arguments, message, monkeypatch):
    from typer.testing import CliRunner

    from modeling_setcrop.cli import app

    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
