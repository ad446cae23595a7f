"""The packaged model on onnxruntime: the same crops as on torch, without torch; checkpoints that cannot be used."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import modeling_setcrop
from modeling_setcrop import DEFAULT_CHECKPOINT, CheckpointError, Cropper
from modeling_setcrop._light_installation import LEFT_OUT
from modeling_setcrop.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "matplotlib", "datasets", "scipy", "accelerate", "huggingface_hub")
PHOTO = str(ROOT / "examples" / "photos" / "budgie-branch.jpg")
# What imports find in the light installation.
WITHOUT_TORCH = f"import sys; sys.modules.update(dict.fromkeys({sorted(LEFT_OUT)}))\n"
RATIOS = ["16:9", "1:1", "4:5", "9:16"]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def imported_by(*command: str, wanted: Collection[str] = HEAVY) -> set[str]:
    """Which of some modules, by default the heavy packages, a command of `setcrop` imports."""
    code = (
        "import sys\n"
        "from modeling_setcrop.cli import app\n"
        "try:\n    app(sys.argv[1:], prog_name='setcrop')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *sys.modules)\n"
    )
    found = run_python(code, *command)
    assert "MODULES" in found.stdout, found.stderr
    return set(found.stdout.rpartition("MODULES")[2].split()) & set(wanted)


@pytest.mark.parametrize("command", ["", *COMMANDS, "data inspect", "export onnx"])
def test_help_imports_nothing_heavy(command):
    assert imported_by(*command.split(), "--help", wanted={*HEAVY, "numpy", "pydantic"}) == set()


@pytest.mark.parametrize("command", ["suggest", "train", "data inspect", "export onnx"])
def test_help_imports_no_other_command_and_nothing_that_reads_options(command):
    words = [*command.split(), "--help"]
    code = (
        f"import sys\nfrom modeling_setcrop.cli import app\ntry:\n    app({words})\n"
        "except SystemExit:\n    print(*(set(sys.modules) & "
        "{'pydantic', 'numpy', 'yaml', 'modeling_setcrop.cli.crop', 'modeling_setcrop.cli.score'}), file=sys.stderr)"
    )
    assert run_python(code).stderr == "\n"


def test_crops_and_ratings_of_the_packaged_model_need_neither_torch_nor_transformers(photos, tmp_path):
    photo = str(photos[0])
    assert imported_by("suggest", photo, "--aspect-ratio", "16:9,1:1", "--json") == set()
    assert imported_by("suggest", photo, "--json", wanted={"numpy.ma", "urllib.request", "xml.dom"}) == set()
    assert imported_by("score", photo, "--box", "10,10,400,300") == set()
    assert imported_by("crop", photo, "--out", str(tmp_path)) == set()
    assert len(list(tmp_path.glob("*.jpg"))) == 1


def test_texts_paths_and_defaults_of_commands_are_not_validated_which_would_import_pydantic(photos, tmp_path):
    photo, unneeded = str(photos[0]), {"pydantic", "hashlib", "PIL.ImageCms", "modeling_setcrop.runs.journal"}
    asked = ["--aspect-ratio", "16:9,1:1", "--keep", "10,10"]
    assert imported_by("suggest", photo, *asked, "--json", wanted=unneeded) == set()
    assert imported_by("suggest", photo, "--strict", wanted=unneeded) == set()
    assert imported_by("score", photo, "--box", "10,10,400,300", wanted={"pydantic"}) == set()
    assert imported_by("crop", photo, "--out", str(tmp_path), "--format", "png", wanted={"pydantic"}) == set()
    assert [path.suffix for path in tmp_path.iterdir() if not path.name.startswith(".")] == [".png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--top-k", "0"], "'--top-k'"),
        (["--nms-iou", "much"], "'--nms-iou'"),
        (["--tightness", "tighter"], "'--tightness'"),
        (["--keep"], "'--keep'"),
    ],
)
def test_other_values_are_validated(photos, arguments, named):
    result = CliRunner().invoke(app, ["suggest", str(photos[0]), *arguments])
    assert result.exit_code == 2 and named in result.output


def test_a_missing_argument_is_named():
    result = CliRunner().invoke(app, ["suggest", "--json"])
    assert result.exit_code == 2 and "Missing argument 'IMAGE|FOLDER...'" in result.output


def test_python_looks_for_no_garbage_at_a_commands_end():
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
        "from modeling_setcrop.cli import app\n"
        "app(['--version'])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "True"


def test_the_package_imports_nothing_heavy_and_still_knows_its_names():
    code = (
        "import sys, modeling_setcrop\n"
        "print(*({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))\n"
        "assert {'SetCropConfig', 'Cropper', 'ImageCroppingPipeline', '__version__'} <= set(dir(modeling_setcrop))\n"
        "from modeling_setcrop import *\n"
        "assert Cropper and SetCropConfig.model_type == 'setcrop'\n"
        "try:\n    modeling_setcrop.Crops\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    found = run_python(code)
    assert found.stdout == "\nmodule 'modeling_setcrop' has no attribute 'Crops'\n", found.stderr


def test_score_rates_boxes_and_maps_where_a_crop_goes_best(tmp_path):
    boxes, runner = ["--box", "0,0,1500,1000", "--box", "10,10,60,50"], CliRunner()
    found = runner.invoke(app, ["score", PHOTO, *boxes, "--json"])
    large, small = json.loads(found.stdout)
    assert large["box"] == {"xmin": 0, "ymin": 0, "xmax": 1500, "ymax": 1000}
    assert 1 <= small["rating"] < large["rating"] <= 5 and large["score"] == large["rating"]
    name, *table = runner.invoke(app, ["score", PHOTO, *boxes]).stdout.splitlines()
    assert name == PHOTO and "rating" in table[1] and f"{large['rating']:.2f}" in table[3]
    path = tmp_path / "map.png"
    found = runner.invoke(app, ["score", PHOTO, "--grid", "--heatmap", str(path), "--json"])
    ratings = [row["rating"] for row in json.loads(found.stdout)]
    assert ratings == sorted(ratings, reverse=True) and len(ratings) == 5
    with Image.open(path) as image:
        assert image.mode == "RGB" and len(image.getcolors(10**6) or ()) > 1000


@pytest.mark.parametrize(
    "words",
    [
        ["suggest", PHOTO, "--runtime", "torch"],
        ["suggest", PHOTO, "--model", "no-such-model"],
        ["train", "--data", "."],
        ["init", "new"],
        ["export", "onnx", "new"],
        ["export", "hub", "new"],
        ["publish", "new", "--repo-id", "me/it"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_that_the_light_installation_cannot_run_says_in_one_line_what_it_needs(words):
    found = run_python(f"{WITHOUT_TORCH}from modeling_setcrop.cli import app; app({words})")
    (line,) = found.stderr.splitlines()
    assert found.returncode == 1
    assert re.fullmatch(r"setcrop.* needs \w+, which the light installation leaves out: pip install setcrop", line)
    assert ("no such folder" in line) == ("no-such-model" in words)


@pytest.mark.parametrize("installation", ["", WITHOUT_TORCH], ids=["whole", "light"])
def test_every_name_that_the_package_lists_can_be_loaded(installation):
    code = (
        f"{installation}import inspect, modeling_setcrop\n"
        "print(*(name for name, value in inspect.getmembers(modeling_setcrop) if name in modeling_setcrop.__all__))"
    )
    listed = set(run_python(code).stdout.split())
    light = {"DEFAULT_CHECKPOINT", "CheckpointError", "ConstraintError", "CropOptions", "Cropper", "ImageFileError"}
    assert listed == (light if installation else set(modeling_setcrop.__all__))


def test_type_checkers_know_the_names_and_no_others(tmp_path):
    package = tmp_path / "modeling_setcrop"
    package.mkdir()
    # Alone, because the types of all that it imports take a minute; a name is known or it is not.
    shutil.copy(ROOT / "modeling_setcrop" / "__init__.py", package)
    (tmp_path / "names.py").write_text(
        "from modeling_setcrop import Cropper, SetCropConfig\nimport modeling_setcrop as m\nm.Crops\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--ignore-missing-imports",
        "--no-site-packages",
        "--cache-dir",
        str(tmp_path / "cache"),
        "names.py",
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert [line for line in found.stdout.splitlines() if ": error:" in line] == [
        'names.py:3: error: Module has no attribute "Crops"  [attr-defined]'
    ]


def test_a_name_that_the_light_installation_cannot_load_says_what_it_needs():
    code = (
        f"{WITHOUT_TORCH}import modeling_setcrop\n"
        "for name in ('SetCropModel', 'ImageCroppingPipeline'):\n"
        "    try:\n        getattr(modeling_setcrop, name)\n"
        "    except ImportError as error:\n        print(error)"
    )
    model, pipeline = run_python(code).stdout.splitlines()
    assert model == "SetCropModel needs torch, which the light installation leaves out: pip install setcrop"
    assert pipeline.startswith("ImageCroppingPipeline needs ")


def test_all_that_the_light_installation_has_can_be_imported_and_looked_at():
    code = (
        f"{WITHOUT_TORCH}import inspect, modeling_setcrop\n"
        "from modeling_setcrop import *\n"
        "print(Cropper.__name__, CropOptions.__name__, 'SetCropModel' in globals())\n"
        "print('Cropper' in dict(inspect.getmembers(modeling_setcrop)))"
    )
    found = run_python(code)
    assert found.stdout.splitlines() == ["Cropper CropOptions False", "True"], found.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import modeling_setcrop",
        "import transformers; import modeling_setcrop",
        "from modeling_setcrop.configuration_setcrop import SetCropConfig",
        "from modeling_setcrop.modeling_setcrop import SetCropModel",
        "from modeling_setcrop import ImageCroppingPipeline",
        "from modeling_setcrop.hub_code import code_files",
        "from modeling_setcrop.runtime.torch_engine import TorchEngine",
        "from modeling_setcrop.data.collation import CropCollator",
    ],
)
def test_transformers_knows_the_model_in_every_order_of_imports(first):
    code = (
        f"{first}\n"
        "from transformers import AutoConfig\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        "tasks = PIPELINE_REGISTRY.get_supported_tasks()\n"
        "print(type(AutoConfig.for_model('setcrop')).__name__, 'image-cropping' in tasks)"
    )
    found = run_python(code)
    assert found.stdout == "SetCropConfig True\n", found.stderr


def test_the_packaged_graphs_are_of_the_packaged_weights():
    folder = Path(DEFAULT_CHECKPOINT)
    report = json.loads((folder / "onnx" / "report.json").read_text())
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert report["weights"] == weights, "export them anew: setcrop export onnx DIR --model DIR --dtype fp32"
    graphs = list((folder / "onnx").glob("*.onnx"))
    assert {path.name for path in graphs} == {"model.onnx", "scorer.onnx"}
    assert sum(path.stat().st_size for path in graphs) < 10e6


@pytest.mark.parametrize("number", range(6))
def test_both_runtimes_give_the_same_boxes(photos, number, both_runtimes):
    fast, reference = both_runtimes
    assert fast.runtime == "onnx" and reference.runtime == "torch"
    found, expected = (cropper(photos[number], aspect_ratio=RATIOS, top_k=1) for cropper in both_runtimes)
    for crop, other in zip(found, expected, strict=True):
        assert crop["box"] == pytest.approx(other["box"], abs=1)
        assert crop["score"] == pytest.approx(other["score"], abs=1e-3)


@pytest.fixture(scope="module")
def both_runtimes():
    return Cropper(), Cropper(runtime="torch", device="cpu")


def top_box(cropper, photo):
    return cropper(photo, top_k=1)[0]["box"]


def test_a_cropper_is_pickled_and_survives_spawn(photos, both_runtimes):
    cropper = both_runtimes[0]
    expected = top_box(cropper, photos[0])
    assert top_box(pickle.loads(pickle.dumps(cropper)), photos[0]) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(top_box, (cropper, photos[0])) == expected


def test_defaults_lists_and_errors_are_those_of_the_pipeline(photos):
    cropper = Cropper(top_k=2)
    assert [len(crops) for crops in cropper([photos[0], photos[1]])] == [2, 2]
    assert cropper([]) == [] and len(cropper(photos[0], top_k=1)) == 1
    with Image.open(photos[0]) as image:
        assert len(cropper(image)) == 2
    with open(photos[0], "rb") as file:
        assert cropper(file) == cropper(photos[0])
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        cropper("nowhere.jpg", topk=1)
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        Cropper(topk=1)
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file"):
        cropper("nowhere.jpg")


def broken(checkpoint: Path, target: Path, change: str) -> Path:
    """A copy of a checkpoint that cannot be used."""
    shutil.copytree(checkpoint, target)
    config, processor = (json.loads((target / f"{name}config.json").read_text()) for name in ("", "preprocessor_"))
    weights = load_file(target / "model.safetensors")
    first = next(name for name in weights if weights[name].is_floating_point())
    match change:
        case "nan":
            weights[first] = weights[first].clone()
            weights[first].flatten()[0] = torch.nan
            save_file(weights, target / "model.safetensors", {"format": "pt"})
        case "missing":
            del weights[first]
            save_file(weights, target / "model.safetensors", {"format": "pt"})
        case "layers":
            config["decoder_layers"] += 1
        case "shape":
            config["d_model"] *= 2
        case "corrupt":
            (target / "model.safetensors").write_bytes(b"not safetensors")
        case "flag":
            config["crop_scoring"] = "yes"
        case "queries":
            config["num_queries"] = -1
        case "std":
            processor["image_std"] = [0.0, 0.5, 0.5]
        case "json":
            (target / "config.json").write_text("{")
            return target
        case "type":
            config["model_type"] = "resnet"
    (target / "config.json").write_text(json.dumps(config))
    (target / "preprocessor_config.json").write_text(json.dumps(processor))
    return target


CHANGES = {
    "nan": "not finite",
    "missing": "1 weights are missing, the first is",
    "layers": "weights are missing",
    "shape": "weights have another shape than config.json says",
    "corrupt": "header",
    "flag": "crop_scoring must be true or false, not 'yes'",
    "queries": "num_queries must be a whole number of at least 1, not -1",
    "std": "image_std must be above 0",
    "json": "not JSON",
    "type": "model_type is 'resnet', not 'setcrop'",
}


@pytest.mark.parametrize("command", ["suggest", "export hub", "export onnx", "export card"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(change, command, tiny_checkpoint, tmp_path, photos):
    """Nothing is exported of it: graphs of missing weights would be of random ones."""
    folder = broken(tiny_checkpoint, tmp_path / "broken", change)
    subject = {"suggest": photos[0], "export card": folder}.get(command, tmp_path / "out")
    model = [] if command == "export card" else ["--model", str(folder)]
    found = CliRunner().invoke(app, [*command.split(), str(subject), *model])
    assert found.exit_code == 1
    assert CHANGES[change] in found.output and len(found.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (folder / "README.md").exists()


@pytest.mark.parametrize("change", ["flag", "queries", "std", "json", "type"])
def test_both_runtimes_refuse_a_config_with_the_same_words(change, tmp_path):
    shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "good", ignore=shutil.ignore_patterns("evaluation", "examples"))
    folder, messages = broken(tmp_path / "good", tmp_path / "broken", change), []
    for runtime in ("onnx", "torch"):
        with pytest.raises(CheckpointError, match=CHANGES[change]) as caught:
            Cropper(folder, runtime)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("device", ["cuda:7", "nowhere"])
def test_a_device_that_is_not_there_is_said_in_one_line(device, tiny_checkpoint, photos):
    found = CliRunner().invoke(app, ["suggest", str(photos[0]), "--model", str(tiny_checkpoint), "--device", device])
    assert found.exit_code == 1 and len(found.output.strip().splitlines()) == 1 and device in found.output


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory) -> Path:
    """A good image and files that are none, in a folder of their own."""
    folder = tmp_path_factory.mktemp("odd")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    image.save(folder / "good.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "short.jpg").write_bytes((folder / "good.jpg").read_bytes()[:700])
    image.convert("I;16").save(folder / "deep.png")
    image.quantize(8).save(folder / "palette.gif")
    return folder


@pytest.mark.parametrize("command", ["suggest", "score", "crop"])
def test_both_runtimes_say_the_same_of_bad_input(command, odd_files, tmp_path):
    answers = []
    for runtime in ("onnx", "torch"):
        options = ["--runtime", runtime]
        if command == "score":
            calls = [[str(path), "--box", "0,0,9,9", *options] for path in sorted(odd_files.iterdir())]
        else:
            calls = [[str(odd_files), *options, *(["--out", str(tmp_path / runtime)] if command == "crop" else [])]]
        found = [CliRunner().invoke(app, [command, *call]) for call in calls]
        answers.append(
            [(one.exit_code, [ln for ln in one.output.splitlines() if ln.startswith("setcrop")]) for one in found]
        )
    assert answers[0] == answers[1] and any(code == 1 for code, _ in answers[0])


def test_what_travels_to_the_hub_imports_nothing_from_the_folders():
    from modeling_setcrop.hub_code import code_files

    names = {path.name for path in code_files()}
    assert {
        "crop_constraints.py",
        "crop_judging.py",
        "crop_options.py",
        "crop_search.py",
        "crop_selection.py",
        "cropping.py",
        "image_preprocessing.py",
    } <= names
    for path in code_files():
        for module in re.findall(r"^\s*from \.([\w.]+) import", path.read_text(), re.MULTILINE):
            assert "." not in module and f"{module}.py" in names, (path.name, module)


def test_the_version_and_the_module():
    assert run_python("import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('modeling_setcrop')").stdout
    found = CliRunner().invoke(app, ["--version"])
    assert found.exit_code == 0 and found.output.startswith("setcrop 0.")


def test_code_of_a_checkpoint_is_never_asked_about_only_run_when_told(tiny_checkpoint, tmp_path, photos):
    """A checkpoint with code of another name: nothing runs, and no answer at the keyboard changes that."""
    shutil.copytree(tiny_checkpoint, tmp_path / "with-code")
    config = json.loads((tmp_path / "with-code" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Theirs", "AutoModelForObjectDetection": "theirs.Theirs"}
    (tmp_path / "with-code" / "config.json").write_text(json.dumps(config))
    (tmp_path / "with-code" / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command = ["suggest", str(photos[0]), "--model", str(tmp_path / "with-code")]
    CliRunner().invoke(app, command, input="y\ny\ny\n")
    assert not (tmp_path / "ran").exists()
