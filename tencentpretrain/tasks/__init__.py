"""What models are fine-tuned for; every module of this folder is found by itself."""

import importlib
import pkgutil

from tencentpretrain.tasks.base import TASKS, Task, TaskConfig, TaskExamples

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["TASKS", "Task", "TaskConfig", "TaskExamples"]
