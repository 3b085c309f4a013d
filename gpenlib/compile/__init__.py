"""From a build configuration to an artefact: calibrate, quantise, verify."""

from gpenlib.compile.build import compile_model
from gpenlib.compile.calibrate import CalibrationError
from gpenlib.compile.rounding import QuantisationError
from gpenlib.settings import BuildConfig, as_build_config

__all__ = ["BuildConfig", "CalibrationError", "QuantisationError", "as_build_config", "compile_model"]
