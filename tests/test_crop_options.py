"""What a caller may ask: read, refused with the option's name, never passed over."""

from __future__ import annotations

from dataclasses import fields

import pytest
from typer.main import get_group

from modeling_setcrop.cli import app
from modeling_setcrop.cli.options import selection_options
from modeling_setcrop.crop_options import CropOptions, parse_aspect_ratio


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("16:9", 16 / 9),
        ("16/9", 16 / 9),
        ("4x5", 0.8),
        (1.5, 1.5),
        ((16, 9), 16 / 9),
        ("1.91:1", 1.91),
        ("2.39", 2.39),
        ("Square", 1.0),
        ("original", 2.0),
        ("free", None),
    ],
)
def test_aspect_ratios_are_read(value, expected):
    assert parse_aspect_ratio(value, (100, 200)) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "value", ["", "16:", "a:b", "0:5", "5:0", 0, -1, float("nan"), float("inf"), "1:2:3", (16, 0), True, None]
)
def test_bad_aspect_ratios_are_named(value):
    with pytest.raises(ValueError, match="aspect ratio"):
        parse_aspect_ratio(value, (100, 200))


def test_a_pair_is_one_ratio_and_a_list_several():
    pair, several = CropOptions(aspect_ratio=(16, 9)), CropOptions(aspect_ratio=["16:9", 1, "free"])
    assert pair.aspect_ratios == ((16, 9),) and not pair.several_ratios
    assert several.aspect_ratios == ("16:9", 1, "free") and several.several_ratios
    assert CropOptions(aspect_ratio=["1:1"]).several_ratios


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("topk", "top_k"), ("avoids", "avoid"), ("aspect_ratios", "aspect_ratio"), ("min_areas", "min_area")],
)
def test_misspelt_options_are_refused_with_the_nearest(misspelt, meant):
    with pytest.raises(TypeError, match=f"no option '{misspelt}'; did you mean '{meant}'"):
        CropOptions.from_kwargs(**{misspelt: 1})
    with pytest.raises(TypeError, match="the options are top_k, threshold"):
        CropOptions.from_kwargs(xyzzy=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 50}, "threshold must lie in 0..1, not 50"),
        ({"threshold": None}, "threshold must be a number"),
        ({"threshold": float("nan")}, "threshold must lie"),
        ({"nms_iou": 80}, "nms_iou must lie"),
        ({"diversity": 1.5}, "diversity must lie"),
        ({"top_k": -1}, "top_k must be at least 1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"strict": "yes"}, "strict must be True or False"),
        ({"min_area": 2}, "min_area must lie"),
        ({"min_area": 0.5, "max_area": 0.4}, "larger than max_area"),
        ({"min_size": 0}, "min_size must be at least"),
        ({"min_size": "10x10"}, "min_size must be one number"),
        ({"width": 0}, "width must be at least 1"),
        ({"width": 300, "height": 200, "aspect_ratio": "1:1"}, "contradict"),
        ({"aspect_ratio": ["1:1", "wide"]}, "aspect ratio 'wide'"),
        ({"keep": [[1, 2, 3]]}, "the weight 3 must lie"),
        ({"keep": [[1, 2, 3, 4, 5, 6]]}, "keep: expected"),
        ({"keep": [1, 2, 3, 4]}, "keep: expected"),
        ({"keep": {"xmin": 1}}, "keep must be a list"),
        ({"keep": [{"xmin": 1}]}, "has no ymin"),
        ({"keep": [[5, 5, 5, 9]]}, "needs x1 < x2"),
        ({"keep": [[float("inf"), 5]]}, "not finite"),
        ({"avoid": [[1, 2]]}, "avoid: expected"),
        ({"tightness": "snug"}, "tightness must be one of"),
        ({"as_set": True, "diversity": 0.5}, "give one of them"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CropOptions.from_kwargs(**options)


def test_changes_keep_the_rest_and_say_what_was_asked():
    options = CropOptions.from_kwargs(top_k=3).updated(threshold=0.2)
    assert (options.top_k, options.threshold) == (3, 0.2)
    assert options.changed() == {"top_k": 3, "threshold": 0.2}
    assert hash(options) == hash(CropOptions(top_k=3, threshold=0.2))


@pytest.mark.parametrize(("name", "changed"), [("suggest", {}), ("crop", {"top_k": 1})])
def test_the_commands_have_every_option_with_its_default(name, changed):
    """From one table, `cli/options.py`; `details` are for programs."""
    command = get_group(app).get_command(None, name)
    defaults = {parameter.name: parameter.default for parameter in command.params}
    options = {field.name for field in fields(CropOptions)} - {"details"}
    assert options <= defaults.keys()
    asked = selection_options({option: defaults[option] for option in options})
    assert asked == CropOptions(**changed)


@pytest.mark.parametrize("command", ["suggest", "crop"])
@pytest.mark.parametrize("option", ["--aspect-ratio", "--best-of"])
def test_aspect_ratios_may_stand_together_or_one_by_one(command, option):
    """Of an option that is given twice the first was lost."""
    group = get_group(app).get_command(None, command)
    asked = []
    for arguments in (["1:1,16:9"], ["1:1", "16:9"]):
        words = [
            "x.jpg",
            *(["--out", "x"] if command == "crop" else []),
            *(word for argument in arguments for word in (option, argument)),
        ]
        with group.make_context(command, words) as context:
            asked.append(selection_options(context.params))
    assert asked[0] == asked[1] and asked[0].aspect_ratio == ("1:1", "16:9")
    assert asked[0].best_of is (option == "--best-of")
