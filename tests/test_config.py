from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PathLike,
    PositiveInt,
    Probability,
    SerializeAsAny,
    check,
    decode,
    nearest,
)
from tencentpretrain.registry import Registry

SHAPES: Registry[object] = Registry("shape", "tests")


@SHAPES.register("circle")
class Circle:
    class Config(ComponentConfig):
        radius: PositiveInt = 1


@SHAPES.register("square")
class Square:
    class Config(ComponentConfig):
        side: PositiveInt
        label: str = ""


Shape = Annotated[SerializeAsAny[ComponentConfig], Choice(SHAPES)]


class Inner(Config):
    width: PositiveInt = 8
    heads: PositiveInt = 2

    @check("width", "heads")
    def _divides(self) -> str | None:
        return f"heads must divide width={self.width}" if self.width % self.heads else None


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()
    maybe: Inner | None = None
    shape: Annotated[SerializeAsAny[ComponentConfig], Choice(SHAPES, "circle")] | None = None
    shapes: dict[str, Shape] = {}
    row: list[Shape] = []
    inners: dict[str, Inner] = {}
    steps: int = 1
    rate: float = 0.5
    share: Probability = 0.1
    mode: Literal["auto", "never"] = "auto"
    path: PathLike = Path("here")
    paths: PathLike | list[PathLike] = Path("here")
    is_on: bool = False
    warmup: int = 0

    @check("warmup", "steps")
    def _fits(self) -> str | None:
        return f"warmup must be at most steps={self.steps}" if self.warmup > self.steps else None


def problems(data: dict[str, Any], cls: type[Config] = Outer) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        decode(cls, data)
    return {problem.path: problem.message for problem in raised.value.problems}


def test_d49_everything_that_is_wrong_is_told_at_once() -> None:
    found = problems(
        {
            "nmae": "a",
            "steps": "many",
            "share": 1.5,
            "mode": "autp",
            "inner": {"widht": 3, "heads": 0},
            "heads": 2,
            "shape": {"name": "cirle"},
            "shapes": {"square": {"side": -1}},
        }
    )
    assert found == {
        "nmae": "is not a known key; did you mean `name`?",
        "steps": "must be a valid integer, but is 'many'",
        "share": "must be < 1.0, but is 1.5",
        "mode": "must be one of auto or never, but is 'autp'; did you mean `auto`?",
        "inner.widht": "is not a known key; did you mean `width`?",
        "inner.heads": "must be > 0, but is 0",
        "heads": "is not a known key; did you mean `inner.heads` or `maybe.heads`?",
        "shape.name": "there is no shape `cirle`; did you mean `circle`?",
        "shapes.square.side": "must be > 0, but is -1",
    }


def test_problems_come_in_the_order_of_the_config() -> None:
    with pytest.raises(ConfigError) as raised:
        decode(Outer, {"mode": 1, "steps": "a", "rate": "b", "name": True})
    paths = [problem.path for problem in raised.value.problems]
    assert paths == ["name", "steps", "rate", "mode"]
    assert str(raised.value).splitlines()[1] == "steps: must be a valid integer, but is 'a'"


def test_a_contradiction_is_told_although_other_keys_are_wrong() -> None:
    found = problems({"inner": {"width": 8, "heads": 3}, "steps": 5, "warmup": 9, "share": 2})
    assert found["inner"] == "heads must divide width=8"
    assert found[""] == "warmup must be at most steps=5"
    assert found["share"].startswith("must be < 1")


def test_checks_see_converted_values_also_where_other_keys_are_wrong() -> None:
    # A text that is a number is valid; the check must not compare it with an int.
    assert problems({"steps": "5", "warmup": "9", "share": 2})[""].startswith("warmup must be")
    assert set(problems({"steps": "9", "warmup": "5", "share": 2})) == {"share"}


def test_a_check_waits_for_sound_fields() -> None:
    assert set(problems({"inner": {"width": "a", "heads": 3}})) == {"inner.width"}


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("key", ["name", "steps", "rate", "path", "paths", "mode"])
def test_a_boolean_is_no_text_number_or_path(key: str, value: bool) -> None:
    assert f"but is {value}" in problems({key: value})[key]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 1e3, 1000),
        ("steps", "12", 12),
        ("rate", "1e-4", 1e-4),
        ("rate", 1, 1.0),
        ("name", 7, "7"),
        ("path", 2024, Path("2024")),
        ("path", "~/x", Path.home() / "x"),
        ("paths", ["a", "b"], [Path("a"), Path("b")]),
        ("is_on", "yes", True),
        ("maybe", None, None),
    ],
)
def test_harmless_conversions(key: str, value: object, expected: object) -> None:
    assert getattr(decode(Outer, {key: value}), key) == expected


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({"steps": 1.5}, "steps", "must be a valid integer, got a number with a fractional part"),
        ({"path": ""}, "path", "must be a path, but is empty"),
        ({"paths": {"a": 1}}, "paths", "must be path or list of path, but is {'a': 1}"),
        ({"inner": 3}, "inner", "must be a group of keys, but is 3"),
        ({"inner": None}, "inner", "must be a group of keys, but is None"),
        ({"shapes": {"square": 3}}, "shapes.square", "must be a group of keys, but is 3"),
        ({"shapes": {"square": {}}}, "shapes.square.side", "is required, but was not given"),
        ({"row": [{"radius": 2}]}, "row.0.name", "is required; valid are: circle, square"),
        ({"inners": {"a": {"b": 1}}}, "inners.a.b", "is not a known key; valid are: heads, width"),
        ({"name": ["x" * 200]}, "name", "must be a valid string, but is ['xxx"),
    ],
)
def test_messages(data: dict[str, Any], path: str, message: str) -> None:
    found = problems(data)
    assert list(found) == [path]
    assert found[path].startswith(message)
    assert len(found[path]) < 160


def test_a_choice_takes_its_class_from_the_name() -> None:
    config = decode(Outer, {"shape": {"name": "square", "side": 3}})
    assert isinstance(config.shape, Square.Config)
    assert config.shape.side == 3
    assert isinstance(decode(Outer, {"shape": {}}).shape, Circle.Config)
    assert isinstance(decode(Outer, {"shape": "circle"}).shape, Circle.Config)
    assert decode(Outer, {"shape": None}).shape is None


def test_choices_in_a_dictionary_are_named_by_key_or_name() -> None:
    data = {"circle": {}, "big": {"name": "square", "side": 9}, "square": None, "c": "circle"}
    shapes = decode(Outer, {"shapes": data}).shapes
    assert {key: type(shape) for key, shape in shapes.items()} == {
        "circle": Circle.Config,
        "big": Square.Config,
        "c": Circle.Config,
    }
    assert [shape.name for shape in shapes.values()] == ["circle", "square", "circle"]


def test_a_list_of_names_stands_for_components_as_they_come() -> None:
    assert list(decode(Outer, {"shapes": ["circle"]}).shapes) == ["circle"]
    row = decode(Outer, {"row": ["circle", {"name": "square", "side": 2}]}).row
    assert [type(shape) for shape in row] == [Circle.Config, Square.Config]


def test_plain_data_decodes_to_an_equal_config() -> None:
    data = {"shape": "circle", "shapes": {"s": {"name": "square", "side": 2}}, "paths": ["a", "b"]}
    config = decode(Outer, {**data, "inner": {"width": 6}, "inners": {"a": {}}, "row": ["circle"]})
    assert decode(Outer, config.to_dict()) == config


def test_configs_are_frozen_and_know_their_docstrings() -> None:
    class Documented(Config):
        width: int = 1
        """Width of it."""

    assert Documented.model_fields["width"].description == "Width of it."
    with pytest.raises(ValueError, match="frozen"):
        Documented().width = 2  # type: ignore[misc]


def test_a_validator_of_one_field_names_the_value_once() -> None:
    class Odd(Config):
        size: int = 1
        many: Annotated[list[int], Field(min_length=1)] = [1]

        @field_validator("size")
        @classmethod
        def _odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError("must be odd")
            return value

    assert problems({"size": 4, "many": []}, Odd) == {
        "size": "must be odd, but is 4",
        "many": "must have at least 1 item after validation, not 0, but is []",
    }


def test_constructing_a_config_in_code_checks_it_too() -> None:
    with pytest.raises(ValueError, match="heads must divide"):
        Inner(width=8, heads=3)


def test_nearest() -> None:
    assert nearest("wordpeice", ["wordpiece", "bpe"]) == "did you mean `wordpiece`?"
    assert nearest("zzz", ["b", "a"]) == "valid are: a, b"
    assert nearest("zzz", []) == "there are none"
    assert nearest("zzz", map(str, range(30))).endswith(", ...")
