"""What a run learned, for other programs: a PEFT folder, merged weights, or a bundle that `load_bundle` opens."""

from components.exporting.bundle import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
