"""The model card's pattern, results for the Hub, and what publishing uploads."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers import AutoConfig, pipeline
from typer.testing import CliRunner

from hub_card.card import build_card, write_card
from hub_card.examples import PHOTOS
from hub_card.publishing import plan_upload, upload
from hub_card.results import CardError, comparison_table, read_evaluations, results_table
from modeling_setcrop import CropOptions
from modeling_setcrop.cli import app
from modeling_setcrop.export.hub_export import export_hub

EVALUATION = {
    "data": "flms43",
    "layout": "flms",
    "split": "test",
    "model": "tiny",
    "images": 43,
    "resamples": 1000,
    "label_spread": {"left": 0.11, "top": 0.12, "right": 0.13, "bottom": 0.14},
    "methods": {
        "human agreement": {"measures": {"iou": {"value": 0.8123, "low": 0.79, "high": 0.83}}, "spread": None},
        "whole image": {"measures": {"iou": {"value": 0.8201, "low": 0.8, "high": 0.84}}, "spread": None},
        "constant: best box": {"measures": {"iou": {"value": 0.8301, "low": 0.8, "high": 0.84}}, "spread": None},
        "tiny": {
            "measures": {
                "iou": {"value": 0.8567, "low": 0.83, "high": 0.88},
                "bde": {"value": 0.0456, "low": 0.04, "high": 0.05},
                "acc_1/5@0.85": {"value": 0.7, "low": 0.6, "high": 0.8},
                "recall_5@0.85": {"value": 0.5, "low": 0.4, "high": 0.6},
                "srcc": {"value": None, "low": None, "high": None},
            },
            "spread": {"left": 0.01, "top": 0.02, "right": 0.03, "bottom": 0.04},
            "less_best_baseline": {
                "iou": {"value": 0.0266, "low": 0.0099, "high": 0.04, "against": "constant: best box"}
            },
        },
    },
}
TRAINING = {
    "data": [
        {"name": "Meadow views", "images": 1234, "licence": "CC BY 4.0"},
        {"name": "Hedges", "images": 5, "licence": "CC0", "id": "somebody/hedges"},
    ],
    "base_model": "somebody/base",
    "labels": "Scored by three gardeners.",
    "recipe": ["AdamW, 3 epochs"],
    "command": "setcrop train --data meadow --layout gaic",
    "limits": ["It has only seen meadows."],
    "examples": "None of them is a meadow.",
}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "flms43.json").write_text(json.dumps(EVALUATION))
    (folder / "training.json").write_text(json.dumps(TRAINING))
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny-crop"
    export_hub(checkpoint, folder)
    write_card(folder, "somebody/tiny-crop")
    return folder


def test_card_has_its_pattern(exported):
    card = ModelCard.load(exported / "README.md")
    headings = re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE)
    assert headings == [
        "How to use",
        "The model",
        "Intended use",
        "Limits",
        "Training data",
        "Recipe",
        "Evaluation",
        "Licences",
        "Citation",
    ]
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert "image-cropping" in card.data.tags
    assert "# tiny-crop" in card.text
    assert 'pipeline("image-cropping", model="somebody/tiny-crop", trust_remote_code=True)' in card.text
    assert "setcrop suggest photo.jpg --model somebody/tiny-crop" in card.text
    assert "It must not decide anything about people" in card.text
    assert "@inproceedings{jia2022rethinking" in card.text
    assert "{{" not in card.content
    assert "{%" not in card.content
    assert "None |" not in card.text
    assert "\n\n\n" not in card.text
    assert "|\n\n|" not in re.sub(r"\n\n\| (standard|less)", "", card.text)


def test_the_card_shows_javascript_where_there_are_graphs(exported, tmp_path):
    assert "transformers.js" not in ModelCard.load(exported / "README.md").text
    folder = shutil.copytree(exported, tmp_path / "tiny-crop")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    text = build_card(folder, "somebody/tiny-crop").text
    assert 'AutoModel.from_pretrained("somebody/tiny-crop");' in text and "highest of pred_ratings (1, 12)" in text
    # Graphs that were exported before have another name for them.
    (folder / "onnx" / "report.json").write_text('{"agreement": {"logits": 0, "pred_boxes": 0, "pred_scores": 0}}')
    assert "highest of pred_scores (1, 12)" in build_card(folder, "somebody/tiny-crop").text


def test_card_says_what_the_model_was_trained_on(exported):
    text = ModelCard.load(exported / "README.md").text
    assert "| Meadow views | 1,234 | CC BY 4.0 |" in text
    assert "Scored by three gardeners." in text
    assert "- AdamW, 3 epochs" in text
    assert "- It has only seen meadows." in text
    assert "Budgie Backgrounds, CC0. None of them is a meadow.\n" in text
    assert "setcrop train --data meadow --layout gaic" in text


def test_figures_stand_beside_the_baselines_and_come_from_the_evaluation(exported):
    card = ModelCard.load(exported / "README.md")
    rows = re.findall(r"^\| (\S[^|]*?) \| (0\.\d{3}) ", card.text, flags=re.MULTILINE)
    assert rows[0] == ("**tiny**", "0.857")
    assert {("human agreement", "0.812"), ("whole image", "0.820"), ("constant: best box", "0.830")} <= set(rows)
    assert "| the first crop's edges (tiny) | 0.010 | 0.020 | 0.030 | 0.040 |" in card.text
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found.keys() == {"iou", "bde", "acc_1_5_0.85"}
    assert found["iou"].metric_value == 0.8567
    assert found["iou"].dataset_type == "flms43"
    assert found["iou"].task_type == "object-detection"


def test_metadata_speaks_the_hubs_language(exported):
    data = ModelCard.load(exported / "README.md").data
    assert data.pipeline_tag == "object-detection"
    assert data.tags[0] == "image-cropping"
    assert data.datasets == ["somebody/hedges"]
    assert data.metrics == ["acc_1_5_0.85", "bde", "iou"]
    assert data.base_model == "somebody/base"
    for result in data.eval_results:
        for name in (result.task_type, result.dataset_type, result.metric_type):
            assert re.fullmatch(r"[a-z0-9_.-]+", name)
    assert {"acc_1_5_0.85", "iou"} <= {result.metric_type for result in data.eval_results}
    assert not (exported / ".eval_results").exists()


def test_the_config_says_nothing_that_means_nothing(exported):
    """No labels of a classifier, no empty names: of the backbone only what makes it."""
    backbone = json.loads((exported / "config.json").read_text())["backbone_config"]
    assert not {"id2label", "label2id", "_name_or_path", "architectures", "problem_type"} & backbone.keys()
    assert None not in backbone.values()
    assert backbone["variant"] and backbone["out_features"]
    assert AutoConfig.from_pretrained(exported).backbone_config.out_features == backbone["out_features"]


def test_card_shows_its_own_crops(exported):
    text = ModelCard.load(exported / "README.md").text
    for photo in PHOTOS:
        assert f"](examples/{photo.name})" in text
        assert (exported / "examples" / photo.name).is_file()


def test_a_bare_checkpoint_gets_a_card_that_says_so(tiny_checkpoint):
    card = build_card(tiny_checkpoint)
    assert card.text.count("Not recorded with this checkpoint.") == 2
    assert "No evaluation is stored with this checkpoint." in card.text
    assert card.data.eval_results is None
    assert "trust_remote_code" not in card.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": "x",\n "split": }', r"flms\.json, line 2"),
        ("[]", r"flms\.json: not a JSON object"),
        ('{"data": "x", "split": "test", "model": "m", "images": "3"}', r"flms\.json: 'images'"),
        ('{"data": "x", "split": "test", "model": "m", "images": 3, "methods": {}}', r"'methods' has no 'm'"),
    ],
)
def test_bad_evaluations_are_named(tmp_path, content, message):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "flms.json").write_text(content)
    with pytest.raises(CardError, match=message):
        read_evaluations(tmp_path)


def test_keys_of_older_files_are_still_read(checkpoint, tmp_path):
    older = tmp_path / "tiny"
    shutil.copytree(checkpoint, older)
    for name, content in (("training.json", TRAINING), ("evaluation/flms43.json", EVALUATION)):
        text = json.dumps(content).replace('"images"', '"pictures"').replace("less_best_baseline", "less_best_blind")
        assert '"pictures"' in text
        (older / name).write_text(text)
    assert build_card(older).text == build_card(checkpoint).text


def test_bad_training_facts_are_named(checkpoint, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder)
    (folder / "training.json").write_text('{"data": [{"name": "x"}]}')
    with pytest.raises(CardError, match=r"training\.json: an entry of 'data' lacks"):
        build_card(folder)


def test_a_card_that_somebody_wrote_stays(exported, checkpoint, tmp_path):
    """One as it was written is renewed."""
    folder = shutil.copytree(exported, tmp_path / "tiny-crop")
    (folder / "training.json").write_text(json.dumps({**TRAINING, "labels": "Scored by four gardeners."}))
    write_card(folder, "somebody/tiny-crop")
    card = folder / "README.md"
    assert "Scored by four gardeners." in card.read_text()
    for text in (card.read_text().replace("four gardeners", "gardeners, four of them"), "Mine.", ""):
        card.write_text(text)
        for command in (["card", str(folder)], ["hub", str(folder), "--model", str(checkpoint)]):
            found = CliRunner().invoke(app, ["export", *command])
            assert found.exit_code == 1 and f"{card}: somebody wrote or changed it" in found.output
            assert len(found.output.strip().splitlines()) == 1
        assert card.read_text() == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("training.json", '{"data": "meadows"}', "training.json: 'data' is no list"),
        ("evaluation/a.json", '{"data": "flms43"}', "a.json: 'split' is missing or no str"),
        ("measured/evaluation.json", "[]", "evaluation.json: not a JSON object"),
        ("measured/evaluation.json", '{"data": 3}', "evaluation.json: 'data' is missing or no str"),
    ],
)
def test_what_a_card_cannot_be_made_from_is_named_before_anything_is_written(
    tiny_checkpoint, tmp_path, name, content, message
):
    run = shutil.copytree(tiny_checkpoint, tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    measured = ["--evaluation", str(run / "measured")] if "measured" in name else []
    found = CliRunner().invoke(app, ["export", "hub", str(tmp_path / "out"), "--model", str(run), *measured])
    assert found.exit_code == 1 and isinstance(found.exception, SystemExit)
    assert message in found.output and str(run) in found.output and not (tmp_path / "out").exists()


def test_evaluations_stay_in_their_folder_and_are_told_apart(tiny_checkpoint, tmp_path):
    """A data set's name may be a path."""
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "evaluation.json").write_text(json.dumps({**EVALUATION, "data": "../../meadow"}))
    written = export_hub(tiny_checkpoint, tmp_path / "out", [tmp_path / "measured"])
    assert tmp_path / "out" / "evaluation" / ".._.._meadow_test" / "evaluation.json" in written
    with pytest.raises(ValueError, match=r"evaluation\.json: is the second evaluation on"):
        export_hub(tiny_checkpoint, tmp_path / "out", [tmp_path / "measured"] * 2)


def test_the_model_leads_the_table():
    assert results_table(EVALUATION).splitlines()[2].startswith("| **tiny** |")


def test_a_model_whose_name_begins_a_baselines_has_its_own_rows_alone():
    methods = dict(EVALUATION["methods"])
    methods["c"] = methods["c, NMS 0.9"] = methods.pop("tiny")
    evaluation = EVALUATION | {"model": "c", "methods": methods}
    bold = [line.split("**")[1] for line in results_table(evaluation).splitlines() if "| **" in line]
    assert bold == ["c", "c, NMS 0.9"]
    assert len(comparison_table(evaluation).splitlines()) == 4


def test_differences_from_the_best_baseline_are_signed():
    assert comparison_table(EVALUATION).splitlines()[2] == "| tiny | +0.027 (+0.010 to +0.040) |"
    without = EVALUATION | {"methods": {"tiny": {"measures": {}}}}
    assert comparison_table(without) is None


class FakeHub:
    """Records what `HfApi` is asked for; the first upload fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.failures = 1

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"hub/{repo_id}"

    def add_space_variable(self, repo_id, key, value):
        self.calls.append(("add_space_variable", {"repo_id": repo_id, "key": key, "value": value}))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))
        self.sent = [(name, Path(options["folder_path"], name).read_bytes()) for name in options["allow_patterns"]]
        if self.failures:
            self.failures -= 1
            response = httpx.Response(503, request=httpx.Request("POST", "https://hub.invalid"))
            raise HfHubHTTPError("the server is busy", response=response)


def test_a_failed_upload_can_be_repeated(exported):
    hub = FakeHub()
    (plan,) = plan_upload(exported, "somebody/tiny-crop")
    with pytest.raises(HfHubHTTPError):
        upload(plan, private=True, api=hub)
    assert upload(plan, private=True, api=hub) == "hub/somebody/tiny-crop"
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"] * 2
    created, sent = hub.calls[2][1], hub.calls[3][1]
    assert created == {"repo_id": "somebody/tiny-crop", "repo_type": "model", "private": True, "exist_ok": True}
    assert sent["folder_path"] == exported
    assert {"model.safetensors", "README.md"} <= set(sent["allow_patterns"])


def test_dry_run_lists_files_and_sizes_without_network(exported, monkeypatch):
    monkeypatch.setattr("hub_card.publishing.HfApi", None)
    found = CliRunner().invoke(app, ["publish", str(exported), "--repo-id", "somebody/tiny-crop", "--dry-run"])
    assert found.exit_code == 0, found.output
    files = [path for path in exported.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files) / 1e6
    assert f"somebody/tiny-crop (model): {len(files)} files, {total:.1f} MB" in found.output
    for name in ("model.safetensors", "modeling_setcrop.py", "README.md"):
        assert re.search(rf"[\d,]+  {re.escape(name)}$", found.output, flags=re.MULTILINE)
    assert "Nothing was uploaded" in found.output


def test_the_space_is_uploaded_with_the_models_name(exported):
    hub = FakeHub()
    hub.failures = 0
    plans = plan_upload(exported, "somebody/tiny-crop", space="gradio")
    assert [(plan.repo_id, plan.repo_type) for plan in plans] == [
        ("somebody/tiny-crop", "model"),
        ("somebody/tiny-crop-demo", "space"),
    ]
    upload(plans[1], api=hub)
    assert hub.calls[0][1]["space_sdk"] == "gradio"
    files = dict(hub.sent)
    space = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert space["models"] == ["somebody/tiny-crop"]
    assert space["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", space["sdk_version"])
    assert re.fullmatch(r"3\.\d+", space["python_version"])
    assert dict(plans[1].files)["README.md"] == len(files["README.md"])
    assert hub.calls[1][1] == {
        "repo_id": "somebody/tiny-crop-demo",
        "key": "SETCROP_MODEL",
        "value": "somebody/tiny-crop",
    }


def test_the_page_is_uploaded_with_the_models_address(exported, tmp_path):
    folder = tmp_path / "tiny-crop"
    shutil.copytree(exported, folder)
    with pytest.raises(
        FileNotFoundError, match=r"has no onnx/model\.onnx; .*: setcrop export onnx \S+ --model \S+crop$"
    ):
        plan_upload(folder, "somebody/tiny-crop", space="static")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    hub = FakeHub()
    hub.failures = 0
    plan = plan_upload(folder, "somebody/tiny-crop", space="static")[1]
    assert plan.repo_id == "somebody/tiny-crop-web"
    upload(plan, api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    assert hub.calls[0][1]["space_sdk"] == "static"
    files = dict(hub.sent)
    assert files.keys() == {"README.md", "index.html", "setcrop.js"}
    assert b'content="https://huggingface.co/somebody/tiny-crop/resolve/main/"' in files["index.html"]
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["models"] == ["somebody/tiny-crop"]
    assert dict(plan.files) == {name: len(content) for name, content in files.items()}


def test_the_endpoints_handler_answers(exported, photos, tmp_path):
    """As an Inference Endpoint loads it: handler.py of the repository, with the folder's path."""
    specification = importlib.util.spec_from_file_location("handler", exported / "handler.py")
    handler = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(handler)
    assert (exported / "requirements.txt").is_file()
    endpoint = handler.EndpointHandler(str(exported))
    text = base64.b64encode(photos[0].read_bytes()).decode()
    parameters = {"top_k": 2, "aspect_ratio": "1:1"}
    crops = endpoint({"inputs": text, "parameters": parameters})
    assert crops == pipeline("image-cropping", model=str(exported))(photos[0], **parameters)
    assert json.loads(json.dumps(crops)) == crops
    assert len(endpoint({"inputs": [text, f"data:image/jpeg;base64,{text}"]})) == 2
    assert endpoint.parameters - {"timeout", "batch_size"} == {field.name for field in fields(CropOptions)}
    assert endpoint({}) == endpoint([text]) == {"error": "the request has no inputs"}
    assert endpoint({"inputs": text, "parameters": {"speed": 3}}) == {"error": "unknown parameters: speed"}
    in_lines = base64.encodebytes(photos[0].read_bytes()).decode()
    assert endpoint({"inputs": in_lines, "parameters": parameters}) == crops
    # No request names a file of the server.
    nameless = shutil.copyfile(photos[0], tmp_path / "photo")
    for named in (str(photos[0]), str(nameless), {"path": str(nameless)}, [{"path": str(nameless), "bytes": None}]):
        assert "an image is base64 text" in endpoint({"inputs": named})["error"]
    assert "error" in endpoint({"inputs": text, "parameters": {"aspect_ratio": "wide"}})
    assert "must be an object" in endpoint({"inputs": text, "parameters": ["top_k"]})["error"]
    assert "list is no image" in endpoint({"inputs": [[text]]})["error"]


def test_a_hub_that_cannot_be_reached_or_has_no_such_name_is_one_line(exported, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("hub_card.publishing.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))
    found = CliRunner().invoke(app, ["publish", str(exported), "--repo-id", "somebody/tiny-crop"])
    assert found.exit_code == 1 and isinstance(found.exception, SystemExit)
    last = found.output.strip().splitlines()[-1]
    assert last.startswith("setcrop publish: somebody/tiny-crop: ") and last.endswith("the same command tries again")
    found = CliRunner().invoke(app, ["publish", str(exported), "--repo-id", "a/b/c", "--dry-run"])
    assert found.exit_code == 1 and "a/b/c" in found.output and len(found.output.strip().splitlines()) == 1


def test_an_incomplete_folder_is_not_published(tiny_checkpoint):
    found = CliRunner().invoke(app, ["publish", str(tiny_checkpoint), "--repo-id", "x/y", "--dry-run"])
    assert found.exit_code == 1
    hint = f"write a folder to upload with: setcrop export hub EXPORT --model {tiny_checkpoint}"
    assert f"has no modeling_setcrop.py; {hint}" in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_what_is_hidden_stays_here(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "tiny-crop")
    for name in (".env", ".gitattributes", ".setcrop-1-1-1.part/model.onnx", "__pycache__/handler.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    names = {name for name, _ in plan_upload(folder, "x/y")[0].files}
    assert names == {name for name, _ in plan_upload(exported, "x/y")[0].files} | {".gitattributes"}


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "https://huggingface.co/a/b", f"a/{'b' * 92}"])
def test_names_that_no_repository_can_have_are_named(exported, name):
    """Of the Space too, which is longer."""
    command = ["publish", str(exported), "--repo-id", name, "--dry-run", "--space", "gradio"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1 and len(found.output.strip().splitlines()) == 1
    assert f"--repo-id '{name}" in found.output and "NAME or OWNER/NAME" in found.output
    with pytest.raises(ValueError, match="NAME or OWNER/NAME"):
        write_card(exported, name if len(name) < 90 else f"{name}{name}")


def test_export_command_writes_card_and_code(checkpoint, tmp_path):
    target = tmp_path / "ready"
    found = CliRunner().invoke(app, ["export", "hub", str(target), "--model", str(checkpoint), "--repo-id", "a/b"])
    assert found.exit_code == 0, found.output
    assert (target / "modeling_setcrop.py").is_file()
    assert "# b" in (target / "README.md").read_text()
    again = CliRunner().invoke(app, ["export", "hub", str(checkpoint), "--model", str(checkpoint)])
    assert again.exit_code == 1
    assert "not an earlier export" in again.output
