"""mini-COAST: small real tasks from the data inside installed packages; see `generate`."""

from components.data.embedded.family import SIZES
from components.data.embedded.mini_coast.generate import GENERATOR_VERSION, MINI_COAST, TASKS, generate_split

__all__ = ["GENERATOR_VERSION", "MINI_COAST", "SIZES", "TASKS", "generate_split"]
