"""One function per notebook: builds what is missing upstream, returns its manifest.

Every stage writes ``<outputs>/<run>/<stage>/`` with ``manifest.json`` last. A folder whose manifest has the
same settings, inputs and package versions, and whose files still have their recorded hashes, is returned at
once; anything else is built anew, and said so.
"""

from gpenlib.stage_settings import (
    CompileSettings,
    DataSettings,
    ErrorSettings,
    InferSettings,
    RunSettings,
    TrainSettings,
)
from gpenlib.stages.comparison_stage import compare_runs
from gpenlib.stages.compile_stage import (
    build_config,
    choice,
    compile,
    float_graph,
    replaced_keys,
    sensitivity,
)
from gpenlib.stages.data_stage import data, evaluation_pack
from gpenlib.stages.errors_stage import errors
from gpenlib.stages.export_stage import export
from gpenlib.stages.infer_stage import infer, output_reader
from gpenlib.stages.layers_stage import layer_errors, quantised_dtype
from gpenlib.stages.report_stage import papermill_command
from gpenlib.stages.train_stage import train

__all__ = [
    "CompileSettings",
    "DataSettings",
    "ErrorSettings",
    "InferSettings",
    "RunSettings",
    "TrainSettings",
    "build_config",
    "choice",
    "compare_runs",
    "compile",
    "data",
    "errors",
    "evaluation_pack",
    "export",
    "float_graph",
    "infer",
    "layer_errors",
    "output_reader",
    "papermill_command",
    "quantised_dtype",
    "replaced_keys",
    "sensitivity",
    "train",
]
