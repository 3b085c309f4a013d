"""From a build configuration to an artefact: calibrate, quantise, verify."""

from gpenlib.compile.calibrate import CalibrationError
from gpenlib.compile.compiler import compile_model
from gpenlib.compile.config import BuildConfig, as_build_config
from gpenlib.compile.layers import QuantisationError

__all__ = ["BuildConfig", "CalibrationError", "QuantisationError", "as_build_config", "compile_model"]
