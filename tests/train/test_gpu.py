import pytest
import torch

from tests.helpers.training import make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(device: str, **keys: object) -> list[float]:
    trainer = make_trainer(device=device, dropout=0.0, steps=5, **keys)
    batches = iter(trainer.loader)
    found = []
    for _ in range(5):
        outputs = trainer.train_step(next(batches)).outputs
        trainer.step += 1
        found.append(sum(o.losses["mlm"].total.item() for o in outputs))
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_a_gpu_computes_what_the_cpu_does(precision: str, tolerance: float) -> None:
    expected = losses("cpu", precision="fp32")
    assert losses("cuda", precision=precision) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_gpu(precision: str) -> None:
    trainer = make_trainer(device="cuda", steps=20, micro_batch_size=4, precision=precision)
    batches = iter(trainer.loader)
    prepared = [[batch.pin_memory() for batch in next(batches)] for _ in range(4)]
    trainer.account(trainer.train_step(prepared[0]), prepared[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for micros in prepared[1:]:
            trainer.account(trainer.train_step(micros), micros)
            trainer.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.log()
    assert trainer.record["train/loss"] > 0


def test_dropout_on_a_gpu_is_a_function_of_seed_and_step() -> None:
    found = []
    for _ in range(2):
        trainer = make_trainer(device="cuda", steps=1)
        stats = trainer.train_step(next(iter(trainer.loader)))
        found.append(stats.outputs[0].losses["mlm"].total.item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
