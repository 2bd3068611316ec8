"""Learning-rate schedules: the factor on the peak rate is a pure function of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from tencentpretrain.config import (
    ComponentConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from tencentpretrain.registry import Registry


class ScheduleConfig(ComponentConfig):
    """What all schedules have."""

    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up from 0; null derives them from warmup_ratio."""
    warmup_ratio: Probability = 0.1
    """Share of the run that is warm-up, where warmup_steps is null."""

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of `steps`."""
        return int(steps * self.warmup_ratio) if self.warmup_steps is None else self.warmup_steps


class Schedule(ABC):
    """Factor on the learning rate for each optimiser step of a run.

    One unit of step everywhere: an update of the weights, however many micro-batches it took.
    """

    class Config(ScheduleConfig):
        pass

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        self.steps = steps
        self.warmup = config.warmup(steps)

    def __call__(self, step: int) -> float:
        """Factor for the update that follows `step` finished ones; the first one is not 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.decay(step - self.warmup, max(1, self.steps - self.warmup))

    @abstractmethod
    def decay(self, step: int, steps: int) -> float:
        """Factor `step` updates after the warm-up, of `steps` ones."""


SCHEDULES: Registry[Schedule] = Registry("schedule", "tencentpretrain.train.schedule")


class FinalConfig(ScheduleConfig):
    """A schedule that ends at a share of its peak."""

    final: Probability = 0.0
    """Factor that the decay ends at."""


@SCHEDULES.register("linear")
class Linear(Schedule):
    """Straight line from 1 to `final`."""

    class Config(FinalConfig):
        pass

    def __init__(self, config: FinalConfig, steps: int) -> None:
        super().__init__(config, steps)
        self.final = config.final

    def shape(self, share: float) -> float:
        """From 1 to 0 over `share` in [0, 1]."""
        return 1 - share

    def decay(self, step: int, steps: int) -> float:
        return self.final + (1 - self.final) * self.shape(min(1.0, step / steps))


@SCHEDULES.register("cosine")
class Cosine(Linear):
    """Half a period of a cosine from 1 to `final` (Loshchilov and Hutter, 2017)."""

    def shape(self, share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * share))


@SCHEDULES.register("cosine_restarts")
class CosineRestarts(Cosine):
    """Several half cosines, each starting again from 1."""

    class Config(FinalConfig):
        cycles: PositiveInt = 1
        """Number of half cosines."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.cycles = config.cycles

    def shape(self, share: float) -> float:
        return 0.0 if share >= 1 else super().shape(share * self.cycles % 1.0)


@SCHEDULES.register("polynomial")
class Polynomial(Linear):
    """(1 - share) to a power."""

    class Config(FinalConfig):
        power: PositiveFloat = 1.0
        """Exponent; 1 is linear."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.power = config.power

    def shape(self, share: float) -> float:
        return float((1 - share) ** self.power)


@SCHEDULES.register("constant")
class Constant(Schedule):
    """Always 1, without warm-up unless one is given."""

    class Config(ScheduleConfig):
        warmup_ratio: Probability = 0.0
        """Share of the run that is warm-up, where warmup_steps is null."""

    def decay(self, step: int, steps: int) -> float:
        return 1.0


@SCHEDULES.register("constant_warmup")
class ConstantWarmup(Constant):
    """Warm-up, then 1."""

    class Config(ScheduleConfig):
        pass


@SCHEDULES.register("inverse_sqrt")
class InverseSqrt(Schedule):
    """Warm-up, then sqrt(warm-up / step) (Vaswani et al., 2017, section 5.3)."""

    def decay(self, step: int, steps: int) -> float:
        warmup = max(1, self.warmup)
        return math.sqrt(warmup / (warmup + step))


@SCHEDULES.register("tri_stage")
class TriStage(Schedule):
    """Warm-up, plateau at 1, exponential decay to `final` (SpecAugment; Park et al., 2019)."""

    class Config(ScheduleConfig):
        decay_ratio: Probability = 0.5
        """Share of the run that is the decay at its end."""
        start: NonNegativeFloat = 0.01
        """Factor that the warm-up starts from."""
        final: PositiveFloat = 0.05
        """Factor that the decay ends at."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.start, self.final = config.start, config.final
        self.decay_steps = max(1, int(steps * config.decay_ratio))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * (step + 1) / self.warmup
        return super().__call__(step)

    def decay(self, step: int, steps: int) -> float:
        past = step - (steps - self.decay_steps)
        return 1.0 if past <= 0 else float(self.final ** min(1.0, past / self.decay_steps))
