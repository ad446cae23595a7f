"""The Ray example gives what the command gives. Skipped without Ray."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray.data")

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=environment
    )


def test_two_workers_crop_a_folder_and_a_parquet_list_as_the_command_does(tiny_checkpoint, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    album = tmp_path / "album"
    for number in range(6):
        path = album / ("a" if number % 2 else "b") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(60 * number).resize((90, 60)).convert("RGB").save(path)
    (album / "a" / "broken.jpg").write_bytes(b"no image")
    options = ["--aspect-ratio", "1:1,4:5", "--model", tiny_checkpoint]
    command = run("-m", "modeling_setcrop.cli", "crop", album, "--out", tmp_path / "one", *options)
    assert command.returncode == 1
    example = ROOT / "examples" / "crop_with_ray.py"
    cluster = run(example, album, "--out", tmp_path / "two", "--manifest", tmp_path / "crops.csv", *options)
    assert cluster.returncode == 1 and "12 crops of 7 images" in cluster.stdout, cluster.stderr[-3000:]
    assert "broken.jpg: not an image" in cluster.stderr
    for file in (tmp_path / "one").rglob("*.jpg"):
        assert (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes() == file.read_bytes()
    with (tmp_path / "crops.csv").open() as manifest:
        rows = list(csv.DictReader(manifest))
    journal = [json.loads(line) for line in (tmp_path / "one" / ".setcrop.jsonl").read_text().splitlines()]
    scores = {row["file"]: row["score"] for entry in journal if entry["state"] for row in entry["rows"]}
    assert {row["file"]: float(row["score"]) for row in rows if not row["error"]} == scores

    table = pyarrow.table({"path": [str(file) for file in sorted((album / "b").iterdir())]})
    parquet.write_table(table, tmp_path / "paths.parquet")
    listed = run(example, tmp_path / "paths.parquet", "--out", tmp_path / "three", *options)
    assert listed.returncode == 0 and "6 crops of 3 images" in listed.stdout, listed.stderr[-3000:]


def test_a_wrong_option_is_one_line_before_a_cluster_starts(tmp_path):
    (tmp_path / "album").mkdir()
    example, album = ROOT / "examples" / "crop_with_ray.py", tmp_path / "album"
    Image.new("RGB", (90, 60)).save(album / "0.jpg")
    for options, part in (
        (["--out", tmp_path / "out", "--aspect-ratio", "wide"], "'wide'"),
        (["--out", tmp_path / "out", "--top-k", "0"], "top_k"),
        (["--out", album], "the images lie in it"),
        (["--out", tmp_path / "out", "--model", album / "0.jpg"], "cannot load the model"),
    ):
        ended = run(example, album, *options)
        assert ended.returncode == 2 and part in ended.stderr.splitlines()[-1], ended.stderr[-3000:]
    assert not (tmp_path / "out").exists() and [file.name for file in album.iterdir()] == ["0.jpg"]
