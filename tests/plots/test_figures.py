"""Every figure draws from small rows of the shape that the stages write, and can be read."""

import io
import re
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import radians, sin

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from gpenlib.architecture.inspect import (
    block_costs,
    eager_peak_bytes,
    live_activations,
    stage_costs,
    total_cost,
)
from gpenlib.architecture.model import GpenConfig
from gpenlib.compile.build import LEAST_PSNR
from gpenlib.compile.calibrate import MODES
from gpenlib.errors.compare import FaceErrors
from gpenlib.infer.scoring import Face
from gpenlib.plots import architecture, compile, data, errors, export, infer, train

# ---------------------------------------------------------------- samples


@dataclass(frozen=True)
class Case:
    """How much there is to draw."""

    faces: int = 6
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8", "int8_bf16")
    length: int = 0  # of names, filled up
    layers: int = 30
    config: GpenConfig = GpenConfig()

    def name(self, text):
        return text.ljust(self.length, "x")

    def rows(self, seed=0, **ranges):
        """Return a row per face with a value between the ends of each range."""
        random = np.random.default_rng(seed)
        names = [self.name(f"face_{index:04d}") for index in range(self.faces)]
        return [{"name": name, **{k: random.uniform(*e) for k, e in ranges.items()}} for name in names]

    def by_dtype(self, **ranges):
        return [row | {"dtype": d} for i, d in enumerate(self.dtypes) for row in self.rows(i, **ranges)]


CASES = {
    "usual": Case(),
    "single": Case(1, ("int8_bf16",), layers=1, config=GpenConfig(32, 32)),
    "long": Case(length=60, config=GpenConfig(256, 1024)),
    "pair": Case(2, ("fp32", "int8_bf16"), layers=2, config=GpenConfig(64, 64, 1, 0.5)),
}


def picture(seed=0, side=40):
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


def pictures(count, side=40):
    return [picture(seed, side) for seed in range(count)]


def scored(case):
    """Rows of 04_infer."""
    return case.rows(
        psnr=(22, 30), psnr_input=(20, 25), ssim=(0.7, 0.9), ssim_input=(0.6, 0.8), ms=(40, 60),
        colourfulness=(20, 40), colourfulness_truth=(25, 50), colour_shift=(1, 9), sharpness=(50, 400),
        sharpness_input=(0, 50), sharpness_truth=(60, 500), detail=(0.3, 0.8), detail_input=(-0.01, 0.3),
    )  # fmt: skip


def faces(case):
    return [Face(row["name"], picture(1, 20), picture(2), picture(3), row, "median") for row in scored(case)]


def compared(case):
    """Rows and table of 05_errors; fp32 is always among them."""
    case = replace(case, dtypes=tuple(dict.fromkeys(("fp32", *case.dtypes))))
    ranges = {"psnr": (22, 30), "psnr_drop": (-0.1, 0.4), "ssim_drop": (0, 0.01)}
    rows = case.by_dtype(**ranges, colour_shift_to_fp32=(0, 1), bias=(-1, 1))
    ends = {"psnr_drop": 0.1, "psnr_drop_low": 0.0, "psnr_drop_high": 0.2, "ssim_drop": 0.005}
    few = case.faces < 5
    table = [{"dtype": d, **ends, "ssim_drop_low": 0.0, "ssim_drop_high": 0.01} for d in case.dtypes]
    return rows, [row | {"psnr_drop_low": None, "ssim_drop_low": None} if few else row for row in table]


def grouped(case):
    """Groups and trends of 05_errors; intervals are None below five faces."""
    thirds = ("lowest third", "middle third", "highest third")
    skins = ("very light", "light", "intermediate", "tan", "brown", "dark", "no skin colour found")
    traits = {"ita": skins, "lightness": thirds, "colourfulness": thirds}
    dtypes = [dtype for dtype in case.dtypes if dtype != "fp32"]
    groups = [
        {"trait": trait, "group": group, "dtype": dtype, "score": "psnr", "faces": place + 3, "fp32": 25.0 + place,
         "drop": 0.1, "drop_low": 0.05 if place > 1 else None, "drop_high": 0.2 if place > 1 else None}
        for dtype in dtypes for trait in traits for place, group in enumerate(traits[trait][: case.faces + 1])
    ]  # fmt: skip
    ends = {"low": None, "high": None} if case.faces < 5 else {"low": -0.1, "high": 0.6}
    trends = [{"trait": t, "dtype": d, "score": "psnr", "correlation": 0.3, **ends} for d in dtypes for t in traits]
    return groups, trends


def face_errors(case):
    dtypes = [dtype for dtype in case.dtypes if dtype != "fp32"]
    outputs = {dtype: picture(place) for place, dtype in enumerate(dtypes)}
    maps = {dtype: output.max(axis=2).astype(np.int16) // 9 for dtype, output in outputs.items()}
    spots = dict.fromkeys(dtypes, (0.13, 0.87))
    names = [row["name"] for row in case.rows()][:3]
    return [FaceErrors(name, "worst", picture(9), outputs, maps, spots, picture(8, 20)) for name in names]


def modules(case):
    """Stages of the network in graph order."""
    return [*(f"ecd{i}" for i in range(8)), "generator.conv1", *(f"generator.convs.{i}" for i in range(21))][
        -case.layers :
    ]


def feature_maps(case):
    """Rows of the layer errors: a quantised convolution, its activation, and an RGB layer in float."""
    rows = []
    for place, name in enumerate(modules(case)):
        none = dict.fromkeys(
            ("isolated_sqnr_db", "output_psnr_alone", "output_psnr_without", "clipped_share", "saturation")
        )
        row = {"module": name, "layer": None, "quantised": False, "sqnr_db": 30 - place / 2, **none}
        row["shape"] = (64, 4 + 2 ** (place // 4), 8)
        own = {"isolated_sqnr_db": 40.0 - place % 3, "output_psnr_alone": 50.0, "output_psnr_without": 31.0}
        codes = {"clipped_share": 1e-5 * (place % 2), "saturation": 1e-4}
        rows += [row | {"layer": f"{name}.conv", "quantised": True, **own, **codes}, row, row | {"layer": name}]
    return rows


def layers(case):
    """Layers of an int8 artefact's manifest; the decoder's are in halves."""
    sizes = {"weight_scale_min": 1e-4, "weight_scale_max": 4e-3, "weight_sqnr_db": 38.0}
    return [
        {"name": name, "operator": "Conv" if place % 3 else "ConvTranspose", **sizes,
         "tensors": (f"t{place}", f"s{place}")[: 1 + place % 2], "activation_ranges": (9.0, 3.0)[: 1 + place % 2]}
        for place, name in enumerate(modules(case))
    ]  # fmt: skip


def histograms(case):
    limits = dict(zip(MODES, (9.0, 7.0, 5.0, 6.0), strict=True))
    counts = (1e6 * np.exp(-np.arange(128) / 9)).astype(int).tolist()
    return {t: {"limit": 9.0, "counts": counts, "thresholds": limits} for row in layers(case) for t in row["tensors"]}


def points(case):
    """Rows of 03's latency, choice and parity in one."""
    modes = {"int8": MODES, "int8_bf16": MODES}
    times = {"median_ms": 41.0, "p10_ms": 40.0, "p90_ms": 45.5, "times_ms": [41.0] * 15, "batch_size": 1}
    sizes = {"model_bytes": 30 << 20, "executed_precision": "bf16 in 8 bits", "psnr_mean": 48.0, "psnr_worst": 44.0}
    quality = {"psnr_drop": 0.02, "psnr_to_fp32": 45.0}
    rows = [
        {"dtype": d, "mode": m, **times, **sizes, **quality} for d in case.dtypes for m in modes.get(d, (None,))
    ]
    return [row | dict.fromkeys(("psnr_mean", "psnr_worst")) if row["dtype"] == "fp32" else row for row in rows]


def first_of(rows):
    return list({row["dtype"]: row for row in rows}.values())


def performance(case):
    grid = list(product((1, 2, 4), (1, 2), (1, 2)))[: 2 * case.faces]
    return [
        {"backend": "openvino", "dtype": "int8_bf16", "device": "cpu", "batch_size": b, "instances": i, "threads": t,
         "oversubscribed": i * t > 2, "p50_ms": 20.0 * b, "p95_ms": 22.0 * b, "p99_ms": 25.0 * b,
         "enough_for_p99": b > 1, "images_per_s": 9.0 * i * t, "base_memory_mib": 60.0, "peak_memory_mib": 200.0 + b}
        for b, i, t in grid
    ]  # fmt: skip


def layer_times(case):
    kinds = [*compile.KIND_COLOURS]
    rows = [
        {"name": case.name(f"generator.convs.{i}"), "kind": kinds[i % len(kinds)], "precision": "int8", "ms": 9 / (i + 1)}
        for i in range(case.layers)
    ]  # fmt: skip
    return dict.fromkeys(case.dtypes, rows)


def graphs(case):
    operators = {f"Operator{i}": 40 - i for i in range(case.layers)}
    summary = {"operators": operators, "nodes": sum(operators.values()), "constant_convolutions": 20}
    names = [*export.LABELS, case.name("other.onnx")][: case.faces]
    return {name: summary | {"runtime_convolutions": 7 * (name == "training.onnx")} for name in names}


def stress(case):
    overflow = "Gpen.generator.convs.13.conv: aten.linalg_vector_norm [2, 4, 4, 3, 3]"
    lost = {"original_psnr": None, "original_overflow": overflow, "deploy_psnr": 62.0, "deploy_overflow": None}
    fine = {"original_psnr": 71.0, "original_overflow": None, "deploy_psnr": 70.0, "deploy_overflow": overflow}
    return [{"factor": 1e-3, **fine}, {"factor": 1.0, **fine}, {"factor": 1e2, **lost}, {"factor": 1e4, **lost}][
        : case.faces
    ]


def log(case):
    terms = [term for panel in train.PANELS for term in panel.terms]
    rows = [{"step": s, **{term: s**-0.5 for term in terms}} for s in range(1, 40 * case.layers, 40)]
    return rows


def tasks(case):
    row = {"given": picture(), "truth": picture(1), "psnr": 21.5}
    seeds = {"color": [None], "restore-mild": range(case.faces)}
    return [row | {"task": case.name(task), "seed": seed} for task in seeds for seed in seeds[task]]


def colours(case):
    ranges = {"lightness": (30, 70), "lab_a": (5, 15), "lab_b": (5, 20), "chroma": (10, 30), "red_mean": (90, 200)}
    rows = case.rows(**ranges, green_mean=(90, 150), blue_mean=(80, 140), psnr=(20, 25), ssim=(0.5, 1))
    return [row | {"subset": subset} for subset in ("evaluation", "calibration") for row in rows]


def walks(rows, columns):
    return np.stack([picture(i, 8) for i in range(rows * columns)]).reshape(rows, columns, 8, 8, 3)


def maps(case):
    return {side: np.random.default_rng(side).random((3, side, side)) for side in (4, 8, 16, 32)[: case.faces]}


def costs(case):
    return [total_cost(config) for config in {case.config, GpenConfig(256, 256)}]


SCORES = {"psnr": 21.0, "ssim": 0.91, "colour_shift": 3.0}
SAMPLES = {
    architecture.cost_bars: lambda c: (stage_costs(block_costs(c.config)),),
    architecture.memory_timeline: lambda c: (live_activations(c.config), eager_peak_bytes(c.config)),
    architecture.cost_growth: lambda c: (
        costs(c), [eager_peak_bytes(total.config) for total in costs(c)],
        {c.name("published network"): total_cost(GpenConfig(256, 256, 1, 0.5))},
    ),
    architecture.feature_grid: lambda c: (maps(c), maps(c)),
    architecture.growing_image: lambda c: ({s: picture(s, s) for s in maps(c)}, {s: picture(s, s) for s in maps(c)}),
    architecture.before_and_after: lambda c: (picture(), picture(1)),
    architecture.block_diagram: lambda c: (c.config,),
    export.operator_figure: lambda c: (graphs(c),),
    export.convolution_figure: lambda c: (graphs(c),),
    export.parity_figure: lambda c: (
        {name: {"1": {"relative": 0.0}, "2": {"relative": 2e-6}} for name in graphs(c)}, 1e-4,
    ),
    export.difference_figure: lambda c: (
        {c.name("input"): picture(), "training form, PyTorch": picture(1)},
        {name: picture().max(axis=2) * 1e-8 for name in graphs(c)},
    ),
    data.pairs_figure: lambda c: (pictures(c.faces, 20), pictures(c.faces), [r["name"] for r in c.rows()]),
    data.tasks_figure: lambda c: (tasks(c),),
    data.split_figure: lambda c: (pictures(c.faces), pictures(c.layers - 1), (c.faces + 4, c.layers - 1)),
    data.colour_figure: lambda c: (colours(c),),
    data.baseline_figure: lambda c: (c.rows(psnr=(20, 25), ssim=(0.5, 1)), c.rows(chroma=(10, 30))),
    data.answers_figure: lambda c: (
        {"truth": picture(), "grey": picture(1), c.name("wrong colours"): picture(2)},
        {"grey": SCORES, c.name("wrong colours"): SCORES},
    ),
    compile.size_figure: lambda c: (first_of(points(c)),),
    compile.latency_figure: lambda c: (first_of(points(c)),),
    compile.parity_figure: lambda c: (first_of(points(c)), LEAST_PSNR),
    compile.layer_figure: lambda c: (layers(c),),
    compile.calibration_figure: lambda c: (layers(c), histograms(c), "percentile"),
    compile.sensitivity_figure: lambda c: (
        [{"name": name, "psnr": 30.0 + place} for place, name in enumerate(modules(c))],
        [{"excluded": count, "drop_db": 0.3 / (count + 1), "psnr": 40.0} for count in range(min(9, c.layers))], 0.1,
    ),
    compile.times_figure: lambda c: (layer_times(c),),
    compile.pareto_figure: lambda c: (points(c),),
    compile.performance_figure: lambda c: (performance(c),),
    infer.strips_figure: lambda c: (faces(c)[:3],),
    infer.distribution_figure: lambda c: (scored(c), c.dtypes[-1]),
    infer.extremes_figure: lambda c: (faces(c)[:4], faces(c)[:4]),
    infer.latency_figure: lambda c: (scored(c), c.dtypes[-1], "onnxruntime on tensorrt, batch size 16"),
    infer.colourfulness_figure: lambda c: (scored(c), c.dtypes[-1]),
    infer.detail_figure: lambda c: (scored(c), c.dtypes[-1]),
    errors.drops_figure: compared,
    errors.agreement_figure: lambda c: compared(c)[:1],
    errors.colour_figure: lambda c: compared(c)[:1],
    errors.error_maps_figure: lambda c: (face_errors(c),),
    errors.worst_figure: lambda c: (face_errors(c), "int8_bf16"),
    errors.groups_figure: lambda c: grouped(c)[:1],
    errors.trends_figure: lambda c: grouped(c)[1:],
    errors.depth_figure: lambda c: (feature_maps(c),),
    errors.healing_figure: lambda c: (
        [{"in_float": i, "name": name, "psnr": 30.0 + i} for i, name in enumerate([None, *modules(c)][: min(9, c.layers)])],
    ),
    errors.half_stress_figure: lambda c: (stress(c),),
    train.losses_figure: lambda c: (log(c), c.name("prior")),
    train.samples_figure: lambda c: (
        {step: walks(3, c.faces).swapaxes(1, 2).reshape(24, -1, 3) for step in (10, 2000)}, ("given", "output", "truth"),
        c.name("prior"),
    ),
    train.interpolation_figure: lambda c: (walks(c.faces, 8),),
    train.mixing_figure: lambda c: (walks(1, 3)[0], walks(1, c.faces)[0], walks(3, c.faces), "(4 px)", "(16 px and up)"),
}  # fmt: skip

# ---------------------------------------------------------------- what is asked of a figure

SLACK = 2  # pixels
UNITS = re.compile(
    r"\[.+\]|\bms\b|MiB|GFLOPs|millions|pixels|images|image$|\bdB\b|share|part of|SSIM|CIELAB|ΔE|step|nodes|"
    r"convolutions|layers|correlation|deviation|factor|units|magnitude|Laplacian|variance|olourful|logit|loss|L1|cosine|"
    r"gradient|softplus|\|J'y\|",
    re.IGNORECASE,
)


def drawn_texts(figure, monkeypatch):
    """Draw with Agg; return the PNG and every text that was drawn with its box."""
    texts = []
    draw = Text.draw
    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", lambda self, *a, **o: (texts.append(self), draw(self, *a, **o))[1])
        buffer = io.BytesIO()
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(buffer)
    buffer.seek(0)
    shown = {text for text in texts if text.get_visible() and text.get_text().strip()}
    return buffer, {text: text.get_window_extent(canvas.get_renderer()) for text in shown}


def is_number(text):
    plain = re.sub(r"mathdefault|times|[-$\\{}^−+.,×·e%\s]", "", text)
    return plain.isdigit()


def faults(figure, monkeypatch):
    """Return in words what keeps a reader from understanding the figure."""
    buffer, boxes = drawn_texts(figure, monkeypatch)
    found = []
    axes = [axis for axis in figure.axes if axis.get_visible() and axis.axison]
    titles = [axis.get_title(loc) for axis in figure.axes for loc in ("left", "center", "right")]
    titles += [part.get_suptitle() for part in (figure, *figure.subfigs)]
    if not any(title.strip() for title in titles):
        found.append("no title")
    for text, box in boxes.items():
        ends = (*box.min, *(figure.bbox.max - box.max))
        if min(ends) < -SLACK:
            found.append(f"outside the canvas: {text.get_text()!r}, {[round(end) for end in ends]}")
    for axis in axes:
        for name, one in zip("xy", (axis.xaxis, axis.yaxis), strict=True):
            labels = [label for label in one.get_ticklabels(which="both") if label in boxes]
            label = one.get_label_text() or shared_label(axis, axes, name)
            if labels and all(is_number(text.get_text()) for text in labels) and not UNITS.search(label):
                found.append(f"{axis.get_title('left') or axis.get_title()!r}: {name} label {label!r}")
            for first, second in combinations(labels, 2):
                if overlap(first, second, boxes):
                    found.append(f"ticks {first.get_text()!r} and {second.get_text()!r} overlap")
    pixels = matplotlib.image.imread(buffer)
    if pixels[..., :3].std() < 0.005:
        found.append("blank")
    return found


def shared_label(axis, axes, name):
    """Return the label of a panel in the same row (y) or column (x) that speaks for this one."""
    place = axis.get_subplotspec()
    span = "colspan" if name == "x" else "rowspan"
    for other in axes:
        spec = other.get_subplotspec()
        text = getattr(other, f"get_{name}label")()
        if text and place and spec and getattr(spec, span) == getattr(place, span):
            return text
    return ""


def overlap(first, second, boxes):
    """Return whether two tick labels touch; turned ones are parallel lines, so their distance counts."""
    one, two = boxes[first], boxes[second]
    angle = first.get_rotation()
    if angle % 90:
        distance = abs(first.get_transform().transform(first.get_position())[0]
                       - second.get_transform().transform(second.get_position())[0]) * sin(radians(angle))  # fmt: skip
        return distance < first.get_fontsize() * first.get_figure(root=True).dpi / 72 * 0.9
    width = min(one.x1, two.x1) - max(one.x0, two.x0)
    height = min(one.y1, two.y1) - max(one.y0, two.y0)
    return width > 0.5 and height > 0.5


def name_of(function):
    return f"{function.__module__.removeprefix('gpenlib.plots.')}.{function.__name__}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", SAMPLES, ids=name_of)
def test_figure_can_be_read(draw, case, monkeypatch):
    assert faults(draw(*SAMPLES[draw](CASES[case])), monkeypatch) == []
