"""Folder runs among odd files, full disks, other runs and changing folders: nothing ends one, nothing goes unnamed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

import modeling_setcrop
from modeling_setcrop.cli import app
from modeling_setcrop.images.finding import find_images
from modeling_setcrop.runs.cropping import crop_sources
from modeling_setcrop.runs.identity import FileState
from modeling_setcrop.runs.journal import JOURNAL, Journal
from modeling_setcrop.runs.naming import CropPlan, default_name
from modeling_setcrop.runs.output import LOCK, FolderInUse, lock_folder
from modeling_setcrop.runs.sources import list_sources

try:
    import resource
except ImportError:
    resource = None

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cropper(tiny_checkpoint):
    return modeling_setcrop.Cropper(tiny_checkpoint)


@pytest.fixture
def setcrop(cropper, monkeypatch):
    """The command, in this process, on the small model."""
    monkeypatch.setattr("modeling_setcrop.cli.options.load_cropper", lambda *args, **kwargs: cropper)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def photo(path: Path, size=(90, 60), angle=0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").rotate(angle).resize(size).convert("RGB").save(path, **options)
    return path


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    for number in range(4):
        photo(folder / f"photo{number}.jpg", angle=50 * number)
    return folder


def files_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {JOURNAL}


def run(cropper, sources, out, *, name="{stem}", overwrite=False, **options):
    errors = []
    found = list_sources(sources, errors.append, exclude=out)
    assert errors == []
    plan = CropPlan(out, name)
    journal = Journal(out, plan.signature("tiny", options))
    return list(crop_sources(cropper, found, plan, options, journal, overwrite=overwrite, workers=1))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@contextmanager
def full_disk(limit: int):
    """Let files have so many bytes at most, as on a disk that is that full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name == "nt", reason="names, pipes and links the POSIX way")
@pytest.mark.parametrize("format", ["own", "png", "tif"])
def test_no_file_ends_a_run_and_every_file_is_named(setcrop, album, tmp_path, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Apple"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: b"Apple iOS\0\0\1MM" + bytes(40), ExifTags.Base.FNumber: 1.8}
    photo(album / "phone.jpg", exif=exif)
    photo(album / os.fsdecode(b"caf\xe9.jpg"))
    photo(album / f"{'n' * 248}.jpg")
    frames = [Image.new("P", (90, 60), n) for n in range(3)]
    frames[0].save(album / "moves.gif", save_all=True, append_images=[*frames[1:], Image.new("RGB", (90, 60), "red")])
    pages = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue")]
    pages[0].save(album / "pages.tif", save_all=True, append_images=pages[1:])
    (album / "broken.png").write_bytes(b"\x89PNG no more")
    (album / "empty.jpg").touch()
    os.symlink("loop.jpg", album / "loop.jpg")
    os.symlink("nowhere.jpg", album / "gone.jpg")
    os.mkfifo(album / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    # A socket's path must be short.
    here = os.getcwd()
    os.chdir(album)
    listener.bind("socket.jpg")
    os.chdir(here)
    listener.close()
    manifest = tmp_path / "crops.jsonl"
    options = [] if format == "own" else ["--format", format]
    result = setcrop(
        "crop", album, "--out", tmp_path / "out", "--manifest", manifest, "--aspect-ratio", "1:1,4:5", *options
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    rows = rows_of(manifest)
    failed = {Path(row["source"]).name: row["error"] for row in rows if row.get("error")}
    assert set(failed) == {
        "broken.png",
        "empty.jpg",
        "loop.jpg",
        "gone.jpg",
        "pipe.jpg",
        "socket.jpg",
        f"{'n' * 248}.jpg",
    }
    assert "256 bytes, over 255: use a shorter --name" in failed[f"{'n' * 248}.jpg"]
    assert failed["loop.jpg"] == "cannot be read (Too many levels of symbolic links)"
    done = [row for row in rows if row.get("file")]
    assert sorted({Path(row["source"]).name for row in done} | set(failed)) == sorted(os.listdir(album))
    assert len(done) == 2 * len({row["source"] for row in done})
    for row in done:
        with Image.open(tmp_path / "out" / row["file"]) as crop:
            crop.load()
            assert crop.size == (row["width"], row["height"])
    assert {row["note"] for row in done if row["source"].endswith("pages.tif")} == {"page 1 of 2"}
    assert "pages.tif: page 1 of 2" in result.stderr
    again = setcrop("crop", album, "--out", tmp_path / "out", "--aspect-ratio", "1:1,4:5", *options)
    assert f"{len(done) // 2} were done before, {len(failed)} failed" in again.stdout


def test_an_image_that_goes_or_changes_during_the_run_is_named(cropper, album, tmp_path, monkeypatch):
    from modeling_setcrop.runs import cropping

    write = cropping._write

    def meddle(suggestion, *arguments):
        if suggestion.source.stem == "photo1":
            suggestion.source.path.unlink()
        if suggestion.source.stem == "photo2":
            photo(suggestion.source.path, size=(91, 60))
        return write(suggestion, *arguments)

    monkeypatch.setattr(cropping, "_write", meddle)
    reports = {report.source.stem: report for report in run(cropper, [album], tmp_path / "out", top_k=1)}
    assert reports["photo1"].error.reason == "no such file"
    assert reports["photo2"].error.reason == "changed while it was being cropped"
    assert files_below(tmp_path / "out") == {"photo0.jpg", "photo3.jpg"}


def test_whatever_the_model_or_the_code_raises_is_said_and_the_run_goes_on(cropper, album, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise IndexError("list index out of range")

    monkeypatch.setattr("modeling_setcrop.runs.scheduling._suggest_batch", fail)
    reports = run(cropper, [album], tmp_path / "out", top_k=1)
    assert [report.error.reason for report in reports] == ["IndexError: list index out of range"] * 4


@pytest.mark.skipif(resource is None, reason="limits the size of files the POSIX way")
def test_a_full_disk_fails_what_does_not_fit_and_the_next_run_does_it(cropper, album, tmp_path):
    out = tmp_path / "out"
    large = tmp_path / "album" / "large.png"
    Image.effect_noise((300, 300), 90).save(large)
    run(cropper, [album], tmp_path / "first", top_k=1)
    size = (tmp_path / "first" / "large.png").stat().st_size
    with full_disk(size - 1):
        reports = {report.source.stem: report for report in run(cropper, [album], out, top_k=1)}
    assert "large.png: cannot be written (File too large)" in str(reports["large"].error)
    assert reports["large"].error.path == large
    assert files_below(out) == {f"photo{number}.jpg" for number in range(4)}
    again = {report.source.stem: report for report in run(cropper, [album], out, top_k=1)}
    assert [stem for stem, report in again.items() if not report.skipped] == ["large"]
    assert (out / "large.png").stat().st_size == size


@pytest.mark.skipif(resource is None, reason="limits the size of files the POSIX way")
def test_a_journal_that_cannot_be_written_fails_the_image_and_leaves_none_of_its_crops_unknown(
    cropper, album, tmp_path
):
    out = tmp_path / "out"
    for limit in (0, 900):
        with full_disk(limit):
            reports = run(cropper, [album], out, top_k=1)
        assert any(f"{JOURNAL}: cannot be written (File too large)" in str(report.error) for report in reports)
    assert not any(report.error for report in run(cropper, [album], out, top_k=1))
    assert files_below(out) == {f"photo{number}.jpg" for number in range(4)}


def test_crops_that_are_not_whole_are_made_again_and_peoples_work_stays(cropper, album, tmp_path):
    out = tmp_path / "out"
    run(cropper, [album], out, top_k=1)
    whole = {number: (out / f"photo{number}.jpg").read_bytes() for number in range(4)}
    (out / "photo0.jpg").write_bytes(whole[0][:-9])
    (out / "photo1.jpg").write_bytes(b"")
    photo(out / "photo2.jpg", size=(33, 22))
    retouched = (out / "photo2.jpg").read_bytes()
    redone = [report.source.stem for report in run(cropper, [album], out, top_k=1) if not report.skipped]
    assert sorted(redone) == ["photo0", "photo1"]
    assert (out / "photo0.jpg").read_bytes() == whole[0] and (out / "photo1.jpg").read_bytes() == whole[1]
    assert (out / "photo2.jpg").read_bytes() == retouched
    # With other options too.
    reports = run(cropper, [album], out, top_k=1, aspect_ratio="1:1")
    assert [str(report.error).endswith("was changed since (--overwrite replaces it)") for report in reports] == [
        report.source.stem == "photo2" for report in reports
    ]
    assert (out / "photo2.jpg").read_bytes() == retouched


@pytest.mark.parametrize("how", ["in place", "renamed over it"])
def test_a_replaced_image_of_the_same_size_and_time_is_cropped_again(cropper, tmp_path, how):
    source = tmp_path / "album" / "a.bmp"
    photo(source)
    run(cropper, [source], tmp_path / "out", top_k=1)
    before = source.stat()
    other = photo(tmp_path / "other.bmp", angle=90)
    assert other.stat().st_size == before.st_size
    source.write_bytes(other.read_bytes()) if how == "in place" else os.replace(other, source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [report.skipped for report in run(cropper, [source], tmp_path / "out", top_k=1)] == [False]
    # A new time alone changes nothing.
    os.utime(source, ns=(1, 1))
    assert [report.skipped for report in run(cropper, [source], tmp_path / "out", top_k=1)] == [True]


def test_content_is_read_only_where_times_leave_it_open(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        state = FileState.of(file, with_content=True)
        assert file.read() == b"content"
    settled = FileState(**vars(state) | {"seen": state.changed + 3_000_000_000})
    monkeypatch.setattr("modeling_setcrop.runs.identity.content_digest", lambda file: "read")
    assert settled.is_still(path) is (os.name != "nt")
    # Cropped so soon after it was written that the clock could not tell a change since.
    assert not state.is_still(path)


def test_a_file_is_the_same_however_its_path_is_spelled_and_another_one_is_not(cropper, tmp_path, monkeypatch):
    for folder in ("one", "two"):
        photo(tmp_path / folder / "a.jpg", size=(90, 60) if folder == "one" else (60, 90))
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "one")
    assert run(cropper, ["a.jpg"], out, top_k=1)[0].error is None
    for spelling in (tmp_path / "one" / "a.jpg", "../one/a.jpg", "./a.jpg"):
        assert run(cropper, [spelling], out, top_k=1)[0].skipped
    before = (out / "a.jpg").read_bytes()
    monkeypatch.chdir(tmp_path / "two")
    assert "exists and is not a crop of it" in str(run(cropper, ["a.jpg"], out, top_k=1)[0].error)
    assert (out / "a.jpg").read_bytes() == before
    assert len(list_sources(["a.jpg", tmp_path / "two", "../two/a.jpg"], pytest.fail)) == 1


def test_a_folder_that_was_moved_is_known(cropper, album, tmp_path):
    out = tmp_path / "out"
    run(cropper, [album], out, top_k=1)
    album.rename(tmp_path / "moved")
    for _ in range(2):
        assert all(report.skipped for report in run(cropper, [tmp_path / "moved"], out, top_k=1))
    reports = run(cropper, [tmp_path / "moved"], out, top_k=1, aspect_ratio="1:1")
    assert not any(report.skipped or report.error for report in reports)


def test_the_journal_answers_for_the_options_that_are_asked(cropper, album, tmp_path):
    out = tmp_path / "out"
    sources = list_sources([album], pytest.fail)
    for ratio in ("16:9", "1:1"):
        run(cropper, [album], out, name="{stem}", top_k=1, aspect_ratio=ratio)
    plan = CropPlan(out, "{stem}")
    square, wide = (Journal(out, plan.signature("tiny", {"top_k": 1, "aspect_ratio": r})) for r in ("1:1", "16:9"))
    assert all(row["width"] == row["height"] for row in square.rows(sources))
    assert all(row["width"] > row["height"] for row in wide.rows(sources))
    # The files are those of the last run.
    assert all(square.is_done(source) for source in sources) and not any(wide.is_done(source) for source in sources)
    assert CropPlan(out, "{stem}", width=300).signature("m", {}) != plan.signature("m", {})
    assert CropPlan(out, "{stem}", height=300).signature("m", {}) != plan.signature("m", {})


def test_names_that_meet_are_found_before_anything_is_written(setcrop, tmp_path):
    for name in ("a.jpg", "a1.jpg", "a11.jpg"):
        photo(tmp_path / "album" / name)
    for template, top_k in (("{stem}{rank}", 12), ("fixed", 1)):
        result = setcrop("crop", tmp_path / "album", "--out", tmp_path / "out", "--name", template, "--top-k", top_k)
        assert result.exit_code == 1 and "would both be named" in result.stderr
        assert not (tmp_path / "out").exists()
    # What the model answers shows only when it has: the second is refused, not written over the first.
    result = setcrop("crop", tmp_path / "album", "--out", tmp_path / "out", "--name", "w{width}", "--width", 20)
    assert "its crop would have the name of one of" in result.stderr
    assert f"{len(files_below(tmp_path / 'out'))} crop" in result.stdout


def test_file_names_stay_when_another_ratio_is_asked_for(setcrop, album, tmp_path):
    for ratios in ("1:1", "1:1,4:5"):
        setcrop("crop", album, "--out", tmp_path / ratios.replace(":", ""), "--aspect-ratio", ratios)
    assert files_below(tmp_path / "11") == {f"photo{n}_1x1.jpg" for n in range(4)}
    assert files_below(tmp_path / "11") < files_below(tmp_path / "11,45")
    assert default_name(1, []) == "{stem}" and default_name(3, ["1:1"]) == "{stem}_{ratio}_{rank}"


@pytest.mark.parametrize("where", [".", "..", "file", "link"])
def test_an_output_folder_that_holds_the_images_or_is_none_is_refused(setcrop, album, tmp_path, where):
    (tmp_path / "file").touch()
    os.symlink(album, tmp_path / "link")
    out = {".": album, "..": tmp_path, "file": tmp_path / "file", "link": tmp_path / "link"}[where]
    before = files_below(tmp_path)
    for images in (album, album / "photo0.jpg"):
        result = setcrop("crop", images, "--out", out)
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
        assert ("a file, not a folder" if where == "file" else "give another folder") in result.stderr
    assert files_below(tmp_path) == before


def test_an_output_folder_without_permission_is_one_line(setcrop, album, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    result = setcrop("crop", album, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "no permission to write into" in result.stderr


def test_crops_of_earlier_runs_inside_the_album_are_not_cropped(setcrop, album, tmp_path):
    assert setcrop("crop", album, "--out", album / "crops").exit_code == 0
    photo(album / "crops" / "someones.jpg")
    result = setcrop("crop", album, "--out", album / "wide", "--aspect-ratio", "16:9")
    assert "5 crops of 5 images" in result.stdout
    assert "4 left out: a crop that an earlier run wrote to" in result.stderr
    # Named outright, a crop is an image like any other.
    assert len(list_sources([album / "crops" / "photo0.jpg"], pytest.fail)) == 1


def test_an_image_without_a_crop_above_the_threshold_has_its_row(setcrop, album, tmp_path):
    for suffix in (".jsonl", ".csv"):
        manifest = tmp_path / f"crops{suffix}"
        result = setcrop("crop", album, "--out", tmp_path / "out", "--threshold", 1.0, "--manifest", manifest)
        assert result.exit_code == 0 and len(manifest.read_text().splitlines()) == 4 + (suffix == ".csv")
    rows = rows_of(tmp_path / "crops.jsonl")
    assert {Path(row["source"]).stem for row in rows} == {f"photo{n}" for n in range(4)}
    assert all(row["file"] is None and row["note"] == "no crop is above the threshold" for row in rows)


def test_images_of_kinds_that_are_not_read_are_counted_and_named(setcrop, album, tmp_path):
    for name in ("DSC_1.NEF", "DSC_2.nef", "DSC_3.nef", "DSC_4.nef", "layers.xcf", "notes.txt", ".hidden.nef"):
        (album / name).touch()
    (album / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    Image.new("1", (90, 60)).save(album / "scan.pbm")
    manifest = tmp_path / "crops.jsonl"
    result = setcrop("crop", album, "--out", tmp_path / "out", "--manifest", manifest)
    assert "4 left out: .nef files are not read (DSC_1.NEF, DSC_2.nef, DSC_3.nef, ...)" in result.stderr
    assert "1 left out: .xcf files are not read (layers.xcf)" in result.stderr
    assert "1 left out: a link to a folder, which is not followed (elsewhere)" in result.stderr
    assert "5 crops of 5 images" in result.stdout and result.exit_code == 0
    notes = [row["note"] for row in rows_of(manifest) if row["source"].lower().endswith(".nef")]
    assert notes == ["left out: .nef files are not read"] * 4


def test_folders_that_cannot_be_searched_are_named(tmp_path, monkeypatch):
    def walk(path, onerror):
        onerror(PermissionError(13, "Permission denied", str(path / "private")))
        return iter(())

    monkeypatch.setattr("os.walk", walk)
    errors = []
    assert list(find_images([tmp_path], errors.append)) == []
    assert str(errors[0]) == f"{tmp_path / 'private'}: cannot be searched (Permission denied)"


HOLD = """
import sys
from pathlib import Path
from modeling_setcrop.runs.output import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_on_a_folder_is_told_who_holds_it_until_that_process_ends(setcrop, album, tmp_path):
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout.readline() == b"held\n"
    result = setcrop("crop", album, "--out", out)
    assert result.exit_code == 1 and files_below(out) == {LOCK}
    assert f"another run is writing there (process {holder.pid} of " in result.stderr
    holder.kill()
    holder.wait()
    assert setcrop("crop", album, "--out", out).exit_code == 0
    assert files_below(out) == {f"photo{n}.jpg" for n in range(4)}


def test_one_process_holds_a_folder_once_and_lets_go_of_it(tmp_path):
    with lock_folder(tmp_path / "out"), pytest.raises(FolderInUse), lock_folder(tmp_path / "out"):
        pass
    with lock_folder(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_prune_removes_crops_of_images_that_are_gone_and_nothing_else(setcrop, album, tmp_path):
    out = tmp_path / "out"
    photo(album / "trip" / "far.jpg")
    elsewhere = photo(tmp_path / "elsewhere" / "else.jpg")
    options = ["--out", out, "--top-k", 2, "--nms-iou", 1.0]
    setcrop("crop", album, elsewhere.parent, *options)
    before = files_below(out)
    (out / "mine.jpg").write_text("not a crop")
    photo(out / "photo0_2.jpg", size=(10, 10))
    for gone in ("photo0.jpg", "photo1.jpg", "trip/far.jpg"):
        (album / gone).unlink()
    shutil.rmtree(elsewhere.parent)
    listed = setcrop("crop", album, *options, "--prune", "--dry-run")
    assert listed.stdout.count("would remove") == 5 and files_below(out) == before | {"mine.jpg"}
    pruned = setcrop("crop", album, *options, "--prune")
    assert pruned.stdout.count("removing") == 5
    assert not (out / "trip").exists()
    kept = {f"{stem}_{rank}.jpg" for stem in ("photo2", "photo3", "else") for rank in (1, 2)}
    # What a person made of a crop is no longer a crop.
    assert files_below(out) == kept | {"mine.jpg", "photo0_2.jpg"}
    assert "2 were done before" in setcrop("crop", album, *options, "--prune").stdout


def test_prune_leaves_all_where_the_folder_is_empty(setcrop, album, tmp_path):
    out = tmp_path / "out"
    setcrop("crop", album, "--out", out)
    for file in album.iterdir():
        file.unlink()
    other = photo(tmp_path / "other" / "o.jpg")
    result = setcrop("crop", album, other.parent, "--out", out, "--prune")
    assert "remov" not in result.stdout and len(files_below(out)) == 5


def test_a_journal_cannot_make_prune_leave_its_folder(setcrop, album, tmp_path):
    out = tmp_path / "out"
    setcrop("crop", album, "--out", out)
    victim = tmp_path / "victim.jpg"
    victim.write_bytes((out / "photo0.jpg").read_bytes())
    lines = (out / JOURNAL).read_text().replace('"photo0.jpg"', '"../victim.jpg"')
    (out / JOURNAL).write_text(lines)
    (album / "photo0.jpg").unlink()
    setcrop("crop", album, "--out", out, "--prune")
    assert victim.exists()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".jpg", ".tif", ".bmp"])
def test_a_drawing_is_of_the_format_that_its_name_says(setcrop, album, tmp_path, suffix):
    drawing = tmp_path / f"drawn{suffix}"
    assert setcrop("suggest", album / "photo0.jpg", "--annotate", drawing).exit_code == 0
    with Image.open(drawing) as image:
        assert Image.registered_extensions()[suffix] == image.format and image.size == (90, 60)


def test_a_drawing_of_no_known_format_is_refused_before_anything_is_read(setcrop, album, tmp_path):
    result = setcrop("suggest", album / "photo0.jpg", "--annotate", tmp_path / "drawn.xyz")
    assert result.exit_code == 1 and "unknown image format '.xyz'" in result.stderr and result.stdout == ""


def test_a_file_is_opened_twice_to_be_read_and_to_be_cut(cropper, album, tmp_path, monkeypatch):
    opened = []
    real_open = os.open

    def counting(path, *args, **kwargs):
        opened.append(str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr("os.open", counting)
    run(cropper, [album / "photo0.jpg"], tmp_path / "out", top_k=3, name="{stem}_{rank}")
    assert opened.count(str(album / "photo0.jpg")) == 2


def test_the_version_and_the_module_that_is_the_command():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"setcrop {modeling_setcrop.__version__}\n"
    text = subprocess.run(
        [sys.executable, "-m", "modeling_setcrop", "--version"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert text == f"setcrop {modeling_setcrop.__version__}\n"
