from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.arguments import parse_value
from tencentpretrain.compose import CONF, compose, group_options, groups
from tencentpretrain.config import ConfigError
from tencentpretrain.model_files import list_families, load_inherited, model_folders, model_names
from tencentpretrain.yaml_text import dump_yaml, load_yaml, parse_yaml

FILES = {
    "bert/_family.yaml": "encoder: {name: transformer, dropout: 0.1}\ntarget: {mlm: {}, nsp: {}}\n",
    "bert/base.yaml": "# text\ndefaults: [_family]\nhidden: 768\nencoder: {layers: 12}\n",
    "bert/large.yaml": "defaults: [base]\nhidden: 1024\ntarget: {nsp: null}\n",
    "gpt2/small.yaml": "hidden: 768\nparts: [a, b]\n",
    "wwm/base.yaml": "defaults: [bert/base, _self_]\nparts: [c]\n",
}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; a folder of models is elsewhere and the only one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = tmp_path / "zoo"
    write(folder, FILES)
    monkeypatch.setattr("tencentpretrain.model_files.__file__", str(tmp_path / "package" / "x.py"))
    monkeypatch.setenv("TENCENTPRETRAIN_MODELS", str(folder))
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def composed(*words: str) -> dict[str, Any]:
    result = compose("pretrain", words)
    assert result.problems == []
    return result.data


def problems(*words: str) -> dict[str, str]:
    return {problem.path: problem.message for problem in compose("pretrain", words).problems}


def broken(*words: str) -> str:
    with pytest.raises(ConfigError) as raised:
        compose("pretrain", words)
    return str(raised.value)


def test_groups_have_their_defaults_and_model_has_none() -> None:
    data = composed()
    assert data["optim"] == {"name": "adamw"}
    assert data["schedule"] == {"name": "linear"}
    assert "model" not in data


def test_a_size_inherits_from_its_family() -> None:
    assert composed("model=bert/base")["model"] == {
        "hidden": 768,
        "encoder": {"name": "transformer", "dropout": 0.1, "layers": 12},
        "target": {"mlm": {}, "nsp": {}},
    }


def test_a_size_inherits_from_another_size_and_may_drop_a_part() -> None:
    model = composed("model=bert/large")["model"]
    assert (model["hidden"], model["encoder"]["layers"]) == (1024, 12)
    assert model["target"] == {"mlm": {}, "nsp": None}


def test_a_model_inherits_from_another_family_and_replaces_lists() -> None:
    model = composed("model=wwm/base")["model"]
    assert model["encoder"]["layers"] == 12
    assert model["parts"] == ["c"]


def test_models_of_the_working_directory_join_and_win(models: Path) -> None:
    own = {
        "models/bert/mine.yaml": "defaults: [_family]\nhidden: 5\n",
        "models/gpt2/small.yaml": "hidden: 6\n",
    }
    write(Path(), own)
    assert composed("model=bert/mine")["model"]["encoder"]["name"] == "transformer"
    assert composed("model=gpt2/small")["model"] == {"hidden": 6}
    assert "bert/mine" in group_options("model")
    assert "bert/base" in group_options("model")


def test_a_model_may_be_a_file_of_the_user(models: Path) -> None:
    write(Path(), {"my dir/größer v1.2.yaml": "defaults: [bert/base]\nhidden: 4\nname: no\n"})
    model = composed("model=my dir/größer v1.2.yaml")["model"]
    assert (model["hidden"], model["encoder"]["layers"], model["name"]) == (4, 12, "no")
    assert problems("model=no/such.yaml") == {"model": "there is no file `no/such.yaml`"}


def test_a_file_of_the_user_may_be_an_option_of_any_group() -> None:
    write(Path(), {"linear.yaml": "defaults: [cosine]\nfinal: 0.1\n"})
    assert composed("schedule=linear.yaml")["schedule"] == {"name": "cosine", "final": 0.1}
    assert composed("schedule=linear")["schedule"] == {"name": "linear"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bert/bsae", "did you mean `bert/base`?"),
        ("bert", "`bert` is a family; its sizes are: bert/base, bert/large"),
        ("bert/_family", "there are bert/{base,large}, gpt2/{small}, wwm/{base}"),
        ("zzz", "there are bert/{base,large}, gpt2/{small}, wwm/{base}"),
    ],
)
def test_an_unknown_model_gets_a_hint(name: str, hint: str) -> None:
    message = problems(f"model={name}")["model"]
    assert message.startswith(f"there is no model `{name}`; ")
    assert message.endswith(hint) or "did you mean" in message
    assert "_family`?" not in message


def test_the_folder_of_models_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENCENTPRETRAIN_MODELS", "nowhere")
    assert "must be a folder" in problems("model=bert/base")[""]
    monkeypatch.delenv("TENCENTPRETRAIN_MODELS")
    assert "there are no model files" in problems("model=bert/base")["model"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [_famly]\n", "bad.yaml: inherits from `_famly`, which does not exist; did you"),
        ("defaults: [bad]\n", "must not inherit from itself"),
        ("defaults: {a: b}\n", "`defaults` must be a list of names, but is {'a': 'b'}"),
        ("a: 1\nb: [\n", "bad.yaml, line 3: is not YAML"),
        ("a: 1\na: 2\n", "bad.yaml, line 2: is not YAML: key `a` is given twice"),
        ("- a\n", "bad.yaml: must hold keys and values, but holds ['a']"),
        (
            "a: !!python/object/apply:os.system [x]\n",
            "is not YAML: could not determine a construct",
        ),
    ],
)
def test_a_broken_file_is_named(models: Path, text: str, message: str) -> None:
    write(models, {"bert/bad.yaml": text})
    assert message in "; ".join(problems("model=bert/bad").values())


def test_a_file_that_is_not_text_is_named(models: Path) -> None:
    (models / "bert" / "bad.yaml").write_bytes(b"a: \xff\n")
    assert "is not UTF-8 text (byte 3)" in problems("model=bert/bad")[""]


def test_dotted_keys_reach_the_decoder_whether_known_or_not() -> None:
    data = composed("model=bert/base", "model.encoder.layers=4", "optim.learningrate=1", "a.b.c=x")
    assert data["model"]["encoder"] == {"name": "transformer", "dropout": 0.1, "layers": 4}
    assert data["optim"] == {"name": "adamw", "learningrate": 1}
    assert data["a"] == {"b": {"c": "x"}}


@pytest.mark.parametrize("word", ["optim.lr=2", "+optim.lr=2", "++optim.lr=2"])
def test_the_signs_of_hydra_are_accepted(word: str) -> None:
    assert composed(word)["optim"]["lr"] == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("'null'", "null"),
        ("", ""),
        ("1e-4", 1e-4),
        ("-3", -3),
        ("007", "007"),
        ("[a,2,null]", ["a", 2, None]),
        ("[no,1e3]", ["no", 1000.0]),
        ("{a: {b: no}}", {"a": {"b": "no"}}),
        ("[a(1).txt,ü.txt]", ["a(1).txt", "ü.txt"]),
        ("/a b/c (1).txt", "/a b/c (1).txt"),
        ("a=b", "a=b"),
        ("a,b", "a,b"),
        ("range(1,3)", "range(1,3)"),
        ("it's", "it's"),
        ('say "hi"', 'say "hi"'),
        ("学习/über.txt", "学习/über.txt"),
        ("~/data", "~/data"),
        ("[draft].txt", "[draft].txt"),
        ("web/*.gz", "web/*.gz"),
        ("a;b&c|d", "a;b&c|d"),
        (r"C:\x y", r"C:\x y"),
        ("f(x)", "f(x)"),
        ("{x", "{x"),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value) or isinstance(found, int | float)


def test_values_arrive_as_they_were_parsed() -> None:
    data = composed("a=/a b/ü (1),2.txt", "b=[ü,{c: no}]", "c=null", "d=it's", "e=1e-4")
    assert data["a"] == "/a b/ü (1),2.txt"
    assert data["b"] == ["ü", {"c": "no"}]
    assert (data["c"], data["d"], data["e"]) == (None, "it's", 1e-4)


@pytest.mark.parametrize("text", ["1e3", "+7", "1_000", "1.50"])
def test_a_number_remembers_how_it_was_written(text: str) -> None:
    number = composed(f"run_dir={text}")["run_dir"]
    assert str(number) == text
    assert number == float(text)


def test_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    data = composed("a=${oc.env:WHERE}/x", "b=${a}/y", "c.d=${optim.name}")
    assert (data["a"], data["b"], data["c"]) == ("/data/x", "/data/x/y", {"d": "adamw"})
    assert broken("a=${nothing}").startswith("a: Interpolation key 'nothing' not found")
    assert "NOPE" in broken("a=${oc.env:NOPE}")
    assert problems("a=x${")["a"].startswith("cannot be set to `x${`")


def test_a_missing_value_is_left_to_the_decoder(models: Path) -> None:
    write(models, {"bert/open.yaml": "hidden: ???\nsize: 1\n"})
    assert composed("model=bert/open")["model"] == {"size": 1}
    assert composed("model=bert/open", "model.hidden=3")["model"]["hidden"] == 3


@pytest.mark.parametrize("order", [1, -1])
def test_keys_of_a_component_that_is_given_by_name(order: int) -> None:
    key = "target.lm.divergence"
    words = [f"{key}=akl", f"{key}.mu=0.4", "target.lm.ratio=1"]
    found = composed(*words[::order])["target"]["lm"]
    assert found == {"divergence": {"name": "akl", "mu": 0.4}, "ratio": 1}


def test_removal() -> None:
    data = composed("model=bert/base", "~model.target.nsp", "~schedule")
    assert data["model"]["target"] == {"mlm": {}}
    assert "schedule" not in data
    assert "optim" not in composed("optim=null")
    assert "model" not in composed("model=null", "optim={lr: 1}")
    message = problems("model=bert/base", "~model.target.nps")["model.target.nps"]
    assert "cannot be removed" in message
    assert "did you mean `nsp`?" in message


def test_a_group_may_be_given_as_a_mapping() -> None:
    assert composed("optim={lr: 3}")["optim"] == {"name": "adamw", "lr": 3}


@pytest.mark.parametrize("option", ["adm", "my_package.module:Class", "of_a_plugin"])
def test_a_component_without_a_file_is_left_to_its_registry(option: str) -> None:
    assert composed(f"optim={option}")["optim"] == {"name": option}
    assert composed(f"wrappers={option}")["wrappers"] == {option: {}}
    assert composed(f"wrappers=[{option}]")["wrappers"] == [option]


def test_mistakes_in_words_are_told_together() -> None:
    result = compose("pretrain", ["foo", "=3", "a..b=1", "~", "-x", "a=1", "+a=2", "model=zzz"])
    text = "\n".join(map(str, result.problems))
    assert "`foo` must be key=value, but has no `=`" in text
    assert "`=3` must be key=value, but `` is not a key" in text
    assert "`a..b=1` must be key=value" in text
    assert "`~` must be ~key" in text
    assert "`-x` is not a known flag" in text
    assert "a: must be given once, but is given by `a=1` and `a=2`" in text
    assert "there is no model `zzz`" in text
    assert len(result.problems) == 7
    assert result.data["optim"] == {"name": "adamw"}


def test_a_key_in_a_list_cannot_be_set_by_name() -> None:
    assert "cannot be set to `1`" in problems("model=gpt2/small", "model.parts.word=1").popitem()[1]


@pytest.mark.parametrize("word", ["model.encoder._target_=os.system", "x=[{_target_: os.system}]"])
def test_a_config_cannot_choose_what_code_runs(word: str) -> None:
    ((path, message),) = problems("model=bert/base", word).items()
    assert path.endswith("_target_")
    assert "does not choose what code runs" in message


def test_hydra_is_not_to_be_configured() -> None:
    assert composed("hydra.run.dir=x")["hydra"] == {"run": {"dir": "x"}}  # the decoder refuses it


def test_composing_makes_no_files() -> None:
    composed("model=bert/base")
    assert list(Path().iterdir()) == []


def test_every_option_of_a_group_is_one_commented_name() -> None:
    commands = [path.stem for path in CONF.glob("*.yaml")]
    names = {group for command in commands for group in groups(command)} - {"model"}
    expected = {"optim", "parallel", "schedule", "task", "tokenizer", "wrappers"}
    assert names == expected | {"target_tokenizer"}
    for group in names:
        for file in (CONF / group).iterdir():
            lines = file.read_text(encoding="utf-8").splitlines()
            assert lines[0].startswith("# "), file
            # Wrappers are several by name, as compose() tells from the lack of a `name`.
            option = f"{file.stem}: {{}}" if group == "wrappers" else f"name: {file.stem}"
            assert lines[1:] in ([option], ["{}"]), file


def registries() -> Iterator[tuple[str, Any]]:
    from tencentpretrain.distributed.parallel import PARALLELS
    from tencentpretrain.tokenizers.base import TOKENIZERS
    from tencentpretrain.train.optim import OPTIMIZERS
    from tencentpretrain.train.schedule import SCHEDULES

    yield from {
        "parallel": PARALLELS,
        "tokenizer": TOKENIZERS,
        "target_tokenizer": TOKENIZERS,
        "optim": OPTIMIZERS,
        "schedule": SCHEDULES,
    }.items()


def test_every_component_of_a_group_has_a_file() -> None:
    for group, registry in registries():
        assert group_options(group) == list(registry), group


def test_the_models_of_an_installed_package_come_before_a_folder_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENCENTPRETRAIN_MODELS")
    write(tmp_path / "models", {"beside/base.yaml": ""})
    assert group_options("model") == ["beside/base"]
    write(tmp_path / "package" / "models", {"inside/base.yaml": ""})
    assert group_options("model") == ["inside/base"]


def test_names_and_families(models: Path) -> None:
    write(models, {"bert/tiny.yaml": "", "bert/zz-top.yaml": "", "alone.yaml": ""})
    names = model_names(model_folders())
    assert names[:5] == ["alone", "bert/tiny", "bert/base", "bert/large", "bert/zz-top"]
    assert list_families(names).startswith("alone, bert/{tiny,base,large,zz-top}, gpt2/{small}")
    assert load_inherited(models / "alone.yaml", [models]) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("Off", "Off"),
        ("true", True),
        ("1e-4", 1e-4),
        ("-2.5E3", -2500.0),
        (".5", 0.5),
        ("010", "010"),
        ("0", 0),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("=", "="),
    ],
)
def test_yaml_is_read_as_it_looks(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    texts = ["no", "1e-4", "010", "12:30", "", "null", "=", "a: b", "über", "x" * 200, "1.", "<<"]
    data = {"texts": texts, "numbers": [1e-5, 1e22, 3, float("inf")], "none": None, "on": True}
    (tmp_path / "a.yaml").write_text(dump_yaml(data), encoding="utf-8")
    assert load_yaml(tmp_path / "a.yaml") == data
