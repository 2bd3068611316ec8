import json
from pathlib import Path

from tencentpretrain.tasks.answers import answer_lines

ANSWERS = [
    {
        "label": "好",
        "probability": 0.75,
        "probabilities": {"好": 0.75, "坏": 0.25},
        "list": [{"a": 1}],
    },
    {"label": "坏", "probability": 1.0, "probabilities": {"好": 0.0, "坏": 1.0}, "list": []},
]


def test_a_table() -> None:
    assert list(answer_lines(Path("out.tsv"), ANSWERS)) == [
        "label\tprobability\tprobabilities.好\tprobabilities.坏\tlist\n",
        '好\t0.750000\t0.750000\t0.250000\t[{"a": 1}]\n',
        "坏\t1.000000\t0.000000\t1.000000\t[]\n",
    ]


def test_json_lines() -> None:
    lines = answer_lines(Path("out.JSONL"), ANSWERS)
    assert [json.loads(line) for line in lines] == ANSWERS


def test_keys_may_be_left_out() -> None:
    lines = list(answer_lines(Path("out.tsv"), ANSWERS, ["probabilities", "list"]))
    assert lines == ["label\tprobability\n", "好\t0.750000\n", "坏\t1.000000\n"]
