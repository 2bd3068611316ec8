import pytest
import torch

from tencentpretrain.layers.norm import build_norm


@pytest.mark.parametrize("name", ["layer", "layer_gain", "rms", "t5", "legacy"])
def test_states_in_bf16_are_normalised_with_gains_in_fp32(name: str) -> None:
    norm = build_norm(name, 16, 1e-6)  # type: ignore[arg-type]
    torch.nn.init.normal_(norm.weight)
    states = torch.randn(3, 16, dtype=torch.bfloat16)
    exact = norm(states.float())
    # bf16 has 8 bits; T5 and the affine part may round once more than the others.
    torch.testing.assert_close(norm(states).float(), exact, rtol=2**-7, atol=1e-3)


def test_rms_norm_keeps_the_type_of_the_states() -> None:
    norm = build_norm("rms", 16, 1e-6)
    assert norm(torch.randn(2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert norm(torch.randn(2, 16)).dtype == torch.float32
