import math
import random

import pytest

from tencentpretrain.train.manifest import from_json, to_json


def test_floats_come_back_to_the_last_bit() -> None:
    drawn = random.Random(0)
    values = [drawn.uniform(-1, 1) * 10.0 ** drawn.randint(-300, 300) for _ in range(1000)]
    values += [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    found = from_json(to_json({"values": values}))["values"]
    assert [value.hex() for value in found] == [value.hex() for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"NaN", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"{", "Expecting"),
        (b'{"$float": "x"}', "could not convert"),
        (b"[" * 99_999, "nested too deeply"),
    ],
    ids=range(5),
)
def test_what_to_json_does_not_write_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)
