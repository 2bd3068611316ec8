"""Whether a run is continued as itself: what its config may change on the way, and what not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tencentpretrain.config import ConfigError, Problem, decode
from tencentpretrain.train.run_config import RunConfig

log = logging.getLogger("tencentpretrain")

BINDING = ("model", "task", "wrappers", "seed", "optim.name", "data.holdout", "data.bucket")
"""Parts of the config that a run cannot change on its way."""
HARMLESS = (
    *("run_dir", "resume", "dry_run", "plugins", "init", "allow_", "callbacks", "checkpoint"),
    *("parallel", "data", "trainer.log_every", "trainer.eval_every", "trainer.stop_after"),
    *("trainer.micro_batch_size", "trainer.recompute", "trainer.compile"),
)
"""Beginnings of the keys whose change has no effect on the weights."""
MOST = 10
"""How many differences of another run are listed."""


def require_same_run(saved: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse to continue as a different run; say what else changes.

    Args:
        saved: Plain data of the config that the run has had so far.
        config: That it is to be continued with.

    Raises:
        ConfigError: with the keys that a run cannot change.
    """
    before, now = flatten(completed(saved, config)), flatten(config.to_dict())
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    binding = [key for key in changed if any(f"{key}.".startswith(f"{b}.") for b in BINDING)]
    if binding:
        raise ConfigError(
            Problem(
                key,
                f"is {now.get(key)!r}, but the run in `{config.run_dir}` has "
                f"{before.get(key)!r}; use that, or another run_dir",
            )
            for key in binding[:MOST]
        )
    for key in changed:
        if not key.startswith(HARMLESS):
            log.warning(f"{key} changes from {before.get(key)} to {now.get(key)}")


def completed(saved: Mapping[str, Any], config: RunConfig) -> Mapping[str, Any]:
    """`saved` with the keys that came after it was written, which have their defaults."""
    try:
        return decode(type(config), saved).to_dict()
    except ConfigError:
        # Of another kind of run, or with keys that are no more: compared as it is.
        return saved


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted path."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= flatten(item, f"{path}.{key}" if path else str(key))
    return leaves
