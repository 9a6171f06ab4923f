"""A worker that imports other code than the driver says why."""

from __future__ import annotations

import pytest

from components.core.errors import ConfigError
from components.core.fingerprint import code_fingerprint, code_root, require_same_code


def test_the_code_that_the_driver_imported_is_accepted() -> None:
    require_same_code(code_fingerprint(), "/anywhere")


def test_other_code_is_named_by_its_folder_or_said_to_have_changed_there() -> None:
    with pytest.raises(ConfigError, match=r"the driver imports /elsewhere/components, this worker .*components;"):
        require_same_code("0123456789abcdef", "/elsewhere/components")
    with pytest.raises(ConfigError, match="changed while the run began, or another node has another version; give"):
        require_same_code("0123456789abcdef", str(code_root()))
