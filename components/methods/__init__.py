"""The methods by name. Adding one: a file here and a line in `METHODS`; the contract tests run over it.

A method may also come from an installed package, which names it under the entry point group `littoral.methods`:

    [project.entry-points."littoral.methods"]
    my_method = "my_package.my_method:MyMethodConfig"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from components.core.errors import ConfigError
from components.core.options import suggest
from components.methods.base import MethodConfig
from components.methods.cf_router import CfRouterConfig
from components.methods.cl_moe import ClMoeConfig
from components.methods.coda_prompt import CodaPromptConfig
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.disco import DiscoConfig
from components.methods.dual_prompt import DualPromptConfig
from components.methods.eproj import EProjConfig
from components.methods.ewc import EwcConfig
from components.methods.frozen import FrozenConfig
from components.methods.hide import HideConfig
from components.methods.individual import IndividualConfig
from components.methods.joint import JointConfig
from components.methods.keep_lora import KeepLoraConfig
from components.methods.l2p import L2PConfig
from components.methods.lcia import LciaConfig
from components.methods.lwf import LwfConfig
from components.methods.merging import MergingConfig
from components.methods.modal_prompt import ModalPromptConfig
from components.methods.moelora import MoeLoraConfig
from components.methods.o_lora import OLoraConfig
from components.methods.pgp import PgpConfig
from components.methods.reg_lora import RegLoraConfig
from components.methods.replay import ReplayConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.methods.smolora import SmoloraConfig
from components.methods.zero_shot import ZeroShotConfig
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
