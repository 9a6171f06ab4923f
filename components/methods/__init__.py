"""The methods by name. Adding one: a file here and a line in `METHODS`; the contract tests run over it.

A method may also come from an installed package, which names it under the entry point group `littoral.methods`:

    [project.entry-points."littoral.methods"]
    my_method = "my_package.my_method:MyMethodConfig"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from components.core.errors import ConfigError
from components.core.options import suggest
from components.methods.options.base import MethodConfig
from components.methods.options.cf_router import CfRouterConfig
from components.methods.options.cl_moe import ClMoeConfig
from components.methods.options.coda_prompt import CodaPromptConfig
from components.methods.options.continual_llava import ContinualLlavaConfig
from components.methods.options.disco import DiscoConfig
from components.methods.options.dual_prompt import DualPromptConfig
from components.methods.options.eproj import EProjConfig
from components.methods.options.ewc import EwcConfig
from components.methods.options.frozen import FrozenConfig
from components.methods.options.hide import HideConfig
from components.methods.options.individual import IndividualConfig
from components.methods.options.joint import JointConfig
from components.methods.options.keep_lora import KeepLoraConfig
from components.methods.options.l2p import L2PConfig
from components.methods.options.lcia import LciaConfig
from components.methods.options.lwf import LwfConfig
from components.methods.options.merging import MergingConfig
from components.methods.options.modal_prompt import ModalPromptConfig
from components.methods.options.moelora import MoeLoraConfig
from components.methods.options.o_lora import OLoraConfig
from components.methods.options.pgp import PgpConfig
from components.methods.options.reg_lora import RegLoraConfig
from components.methods.options.replay import ReplayConfig
from components.methods.options.sequential_lora import SequentialLoraConfig
from components.methods.options.smolora import SmoloraConfig
from components.methods.options.zero_shot import ZeroShotConfig
from components.models.config import BackboneConfig

METHODS: dict[str, type[MethodConfig]] = {
    "zero_shot": ZeroShotConfig,
    "frozen": FrozenConfig,
    "individual": IndividualConfig,
    "joint": JointConfig,
    "replay": ReplayConfig,
    "sequential_lora": SequentialLoraConfig,
    "moelora": MoeLoraConfig,
    "lcia": LciaConfig,
    "continual_llava": ContinualLlavaConfig,
    "ewc": EwcConfig,
    "lwf": LwfConfig,
    "o_lora": OLoraConfig,
    "reg_lora": RegLoraConfig,
    "pgp": PgpConfig,
    "keep_lora": KeepLoraConfig,
    "l2p": L2PConfig,
    "dual_prompt": DualPromptConfig,
    "coda_prompt": CodaPromptConfig,
    "modal_prompt": ModalPromptConfig,
    "eproj": EProjConfig,
    "merging": MergingConfig,
    "cf_router": CfRouterConfig,
    "hide": HideConfig,
    "disco": DiscoConfig,
    "smolora": SmoloraConfig,
    "cl_moe": ClMoeConfig,
}
ENTRY_POINTS = "littoral.methods"


def method_config(name: str) -> type[MethodConfig]:
    """The config class of method `name`, ours or an installed package's.

    Raises `ConfigError` for an unknown name, with the nearest known one, and for an entry point that is not a method.
    """
    if name in METHODS:
        return METHODS[name]
    installed = installed_methods()
    if name in installed:
        return _loaded(installed[name])
    known = [*METHODS, *installed]
    raise ConfigError(f"unknown method {name!r}; known are {', '.join(known)}.{suggest(name, known)}")


def options_for(name: str, backbone: BackboneConfig) -> MethodConfig:
    """The options that a run of method `name` on `backbone` starts from: the published ones, or those that the method
    declares for small backbones (`MethodConfig.tiny`). Raises `ConfigError` as `method_config` does.
    """
    kind = method_config(name)
    return kind.tiny() if backbone.is_small else kind()


def require_task_free(method: MethodConfig, stream: str) -> None:
    """Raise `ConfigError` where `method`, with its options, needs the boundaries that the stream of that name lacks."""
    if not method.is_task_free:
        able = ", ".join(name for name, kind in METHODS.items() if kind.is_task_free)
        raise ConfigError(
            f"method {method.name} needs to know where each task begins and ends, and the stream {stream} has no "
            f"boundaries between its tasks; methods that learn such a stream are {able}."
        )
    if method.bound_by:
        raise ConfigError(
            f"{method.name}.{method.bound_by} needs to know where a task ends, and the stream {stream} has no "
            "boundaries between its tasks; leave that option at its default."
        )


def installed_methods() -> dict[str, EntryPoint]:
    """Methods of other packages, not imported yet; they cannot replace a method of ours."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in METHODS}


def _loaded(point: EntryPoint) -> type[MethodConfig]:
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"method {point.name!r} ({point.value}) cannot be imported ({error}).") from error
    if not (isinstance(kind, type) and issubclass(kind, MethodConfig)) or kind.name != point.name:
        raise ConfigError(
            f"the entry point {point.name!r} names {point.value}, which is not a MethodConfig named {point.name!r}."
        )
    return kind
