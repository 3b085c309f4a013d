"""Every figure draws from small rows of the shape that the stages write, and can be read."""

import base64
import io
import re
from dataclasses import dataclass, replace
from inspect import isfunction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from gpenlib import plots
from gpenlib.architecture import inspect as costs
from gpenlib.architecture.model import GpenConfig
from gpenlib.compile.build import LEAST_PSNR
from gpenlib.compile.write import FORMS
from gpenlib.errors.compare import FaceErrors
from gpenlib.files import repository_root
from gpenlib.infer.scoring import Face
from gpenlib.plots import architecture, compile, data, errors, export, infer, photos, train
from gpenlib.train.config import LossWeights

FACE = re.findall(
    r"\w+",
    "psnr psnr_input psnr_drop ssim ssim_input ssim_drop ms detail detail_input sharpness sharpness_input "
    "bias sharpness_truth colourfulness colourfulness_truth colour_shift colour_shift_to_fp32 lightness "
    "chroma lab_a lab_b red_mean green_mean blue_mean",
)  # scores of a face, of stages 02, 04 and 05 together
TRAITS = {"ita": ("very light", "tan", "brown", "dark", "no skin colour found"), "lightness": ("lowest",)}
NO_INTERVAL = dict.fromkeys(("drop_low", "low", "drop_high", "high"))
LAYER = {"weight_scale_min": 1e-4, "weight_scale_max": 4e-3, "weight_sqnr_db": 38.0}
DEPLOYED = {"deploy_psnr": 62.0, "deploy_overflow": None}
NONE = ("isolated_sqnr_db", "output_psnr_alone", "output_psnr_without", "clipped_share", "saturation")
MEASURED = {
    "median_ms": 41.0, "p10_ms": 40.0, "p90_ms": 45.5, "times_ms": [41.0] * 15, "batch_size": 1, "mode": None,
    "model_bytes": 30 << 20, "executed_precision": "bf16 in 8 bits", "psnr_mean": 48.0, "psnr_worst": 44.0,
    "psnr_drop": 0.02, "psnr_to_fp32": 45.0,
}  # fmt: skip


def picture(seed=0, side=40, *shape):
    return np.random.default_rng(seed).integers(0, 255, (*shape, side, side, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """Rows of every stage; ``dtypes`` are those beside fp32."""

    count: int  # of faces, files, combinations
    dtypes: tuple[str, ...]
    depth: int  # layers
    config: GpenConfig

    def name(self, text):
        return text.ljust(60, "x") if self.count > 1 else text

    def faces(self, seed=0, **more):
        values = np.random.default_rng(seed).uniform(0.1, 1, (self.count, len(FACE)))
        values[:, [name.startswith("sharpness") for name in FACE]] *= 500
        faces = [dict(zip(FACE, line, strict=True)) | more for line in values]
        return [{"name": self.name(f"face_{place}")} | face for place, face in enumerate(faces)]

    def compared(self):
        return [row for seed, d in enumerate(("fp32", *self.dtypes)) for row in self.faces(seed, dtype=d)]

    def groups(self):
        """Groups and trends; the first group has too few faces for an interval."""
        value = {"score": "psnr", "fp32": 25.0, "drop": 0.1, "correlation": 0.3}
        value |= {"drop_low": -0.1, "low": -0.1, "drop_high": 0.4, "high": 0.4}
        return [
            {"dtype": d, "trait": t, "group": g, "faces": 4 + i} | (value if i else value | NO_INTERVAL)
            for d in self.dtypes for t, names in TRAITS.items() for i, g in enumerate(names)
        ]  # fmt: skip

    def shown(self):
        rows = self.faces()[:3]
        return [Face(row["name"], picture(1, 20), picture(2), picture(3), row, "median") for row in rows]

    def maps(self):
        outputs = {dtype: picture(place) for place, dtype in enumerate(self.dtypes)}
        errors_of = {dtype: output.max(axis=2).astype(np.int16) // 9 for dtype, output in outputs.items()}
        rest = (picture(9), outputs, errors_of, dict.fromkeys(outputs, (0.13, 0.87)), picture(8, 20))
        return [FaceErrors(face.name, "worst", *rest) for face in self.shown()]

    def modules(self):
        return [*(f"ecd{i}" for i in range(8)), *(f"generator.convs.{i}" for i in range(22))][-self.depth :]

    def feature_maps(self):
        """Per stage a quantised convolution, its activation, and a convolution in float."""
        rows = []
        for place, name in enumerate(self.modules()):
            row = {"module": name, "layer": None, "quantised": False, "sqnr_db": 30 - place / 2}
            row |= {"shape": (64, 4 + 2 ** (place // 4), 8), **dict.fromkeys(NONE)}
            values = dict(zip(NONE, (40.0 - place % 3, 50.0, 31.0, 1e-5 * (place % 2), 1e-4), strict=True))
            rows += [row | {"layer": f"{name}.conv", "quantised": True} | values, row, row | {"layer": name}]
        return rows

    def layers(self):
        """Every other layer is in halves."""
        return [
            {"name": name, "operator": "Conv" if i % 3 else "ConvTranspose", **LAYER, "psnr": 30.0 + i,
             "tensors": (f"t{i}", f"s{i}")[: 1 + i % 2], "activation_ranges": (9.0, 3.0)[: 1 + i % 2]}
            for i, name in enumerate(self.modules())
        ]  # fmt: skip

    def forms(self):
        """Times of every form; in every third layer another than the first is taken."""
        return [
            {
                "layer": f"{name}.conv",
                "form": form,
                "ms": 9.0 + j - i % 3,
                "chosen": j == int(i % 3 == 1),
                "cached": False,
            }
            for i, name in enumerate(self.modules())
            for j, form in enumerate(FORMS["Conv" if i % 2 else "ConvTranspose"])
        ]

    def steps(self):
        counts = enumerate([None, *self.modules()[1:9]])
        return [{"in_float": i, "excluded": i, "name": n, "psnr": 30.0, "drop_db": 0.3} for i, n in counts]

    def sensitivity(self):
        return {"ranking": self.layers(), "steps": self.steps(), "max_drop_db": 0.1, "images": 8}

    def histograms(self):
        counts = (1e6 * np.exp(-np.arange(128) / 9)).astype(int).tolist()
        limits = dict(zip(compile.MODES, (9.0, 7.0, 5.0, 6.0), strict=True))
        tensors = [tensor for layer in self.layers() for tensor in layer["tensors"]]
        return {name: {"limit": 9.0, "counts": counts, "thresholds": limits} for name in tensors}

    def artefacts(self):
        equal = {"dtype": "fp32", **MEASURED, "psnr_mean": None, "psnr_worst": None}
        return [equal, *({"dtype": dtype, **MEASURED} for dtype in self.dtypes)]

    def swept(self):
        """More runs that none beats than can be named; the last is beaten."""
        rows = [{"dtype": d, "label": self.name(f"{d}, {n}"), "ms": 5.0 + n, "psnr": 20 + n / 9, "best": True}
                for n in range(4 * self.count) for d in ("fp32", *self.dtypes)[n % 2 :][:1]]  # fmt: skip
        return [*rows, {"dtype": "fp32", "label": "beaten", "ms": 99.0, "psnr": 20.0, "best": False}]

    def performance(self):
        return [
            {"backend": "openvino", "dtype": "int8_bf16", "device": "cpu", "batch_size": b, "instances": i,
             "threads": t, "oversubscribed": i * t > 2, "enough_for_p99": b > 1, "images_per_s": 9.0 * i * t,
             "p50_ms": 20.0 * b, "p95_ms": 22.0 * b, "p99_ms": 25.0 * b,
             "base_memory_mib": 60.0, "peak_memory_mib": 200.0 + b}
            for b, i, t in [*product((1, 2, 4), (1, 2), (1, 2))][: 2 * self.count]
        ]  # fmt: skip

    def times(self):
        name, kinds = self.name("generator.convs.1"), list(compile.KIND_COLOURS)
        rows = [{"name": name, "kind": kind, "precision": "int8", "ms": 3.0} for kind in kinds[: self.depth]]
        return dict.fromkeys(self.dtypes, rows)

    def graphs(self):
        summary = {"nodes": 400, "constant_convolutions": 20, "runtime_convolutions": 7}
        summary["operators"] = {f"Operator{i}": 40 - i for i in range(self.depth)}
        return dict.fromkeys([*export.LABELS, self.name("other.onnx")][-self.count :], summary)

    def stress(self):
        overflow = "Gpen.generator.convs.13.conv: aten.linalg_vector_norm [2, 4, 4, 3, 3]"
        fine = {"original_psnr": 71.0, "original_overflow": None, **DEPLOYED}
        lost = fine | {"original_psnr": None, "original_overflow": overflow}
        return [{"factor": 10.0**i, **(lost if i > 2 else fine)} for i in range(-3, self.count - 1, 2)]

    def log(self):
        terms = [term for *_, panel in train.PANELS for term in panel]
        return [{"step": step, **dict.fromkeys(terms, step**-0.5)} for step in range(1, 40 * self.depth, 40)]

    def features(self):
        return {side: np.random.default_rng(0).random((3, side, side)) for side in (4, 8, 16)[: self.count]}

    def growth(self):
        family = (GpenConfig(256, 256), self.config)[-self.count :]
        single = {self.name("published network"): costs.total_cost(GpenConfig(256, 256, 1, 0.5))}
        return [costs.total_cost(c) for c in family], [costs.eager_peak_bytes(c) for c in family], single


CASES = {
    "many": Case(6, ("bf16", "fp16", "int8", "int8_bf16"), 30, GpenConfig(512, 1024)),
    "single": Case(1, ("int8_bf16",), 1, GpenConfig(32, 32)),
}
STYLES = ("(4 px)", "(16 px and up)")
MAP = picture().max(axis=2) * 1e-8
INT8 = {"dtype": "int8", **MEASURED}
DROPS = dict.fromkeys(("psnr_drop", "ssim_drop", "ssim_drop_low", "ssim_drop_high"), 0.1)
SCORE = {"psnr": 21.0, "ssim": 0.91, "colour_shift": 3.0}
TASK = {"given": picture(), "truth": picture(1), "psnr": 21.5, "task": "color", "seed": None}
PARITY = {"1": {"relative": 0.0}, "2": {"relative": 2e-6}}
SAMPLES = {
    architecture.cost_bars: lambda c: (costs.stage_costs(costs.block_costs(c.config)),),
    architecture.memory_timeline: lambda c: (costs.live_activations(c.config), 2**28),
    architecture.cost_growth: Case.growth,
    architecture.feature_grid: lambda c: (c.features(), c.features()),
    architecture.growing_image: lambda c: [{side: picture(0, side) for side in c.features()}] * 2,
    architecture.before_and_after: lambda c: (picture(), picture(1)),
    architecture.block_diagram: lambda c: (c.config,),
    **dict.fromkeys((export.operator_figure, export.convolution_figure), lambda c: (c.graphs(),)),
    export.parity_figure: lambda c: (dict.fromkeys(c.graphs(), PARITY), 1e-4),
    export.difference_figure: lambda c: ({c.name("input"): picture()}, dict.fromkeys(c.graphs(), MAP)),
    data.pairs_figure: lambda c: (*[[picture()] * c.count] * 2, [r["name"] for r in c.faces()]),
    data.tasks_figure: lambda c: [[TASK, *(dict(TASK, task=c.name("mild"), seed=i) for i in range(c.count))]],
    data.split_figure: lambda c: ([picture()] * c.count, [picture()] * (c.depth - 1), (99, c.depth - 1)),
    data.colour_figure: lambda c: (c.faces(0, subset="evaluation") + c.faces(1, subset="calibration"),),
    data.baseline_figure: lambda c: (c.faces(), c.faces(1)),
    data.answers_figure: lambda c: ({"truth": picture(), c.name("soft"): picture()}, {c.name("soft"): SCORE}),
    **dict.fromkeys((compile.latency_figure,), lambda c: (c.artefacts(),)),
    compile.parity_figure: lambda c: (c.artefacts(), LEAST_PSNR),
    compile.layer_figure: lambda c: (c.layers(),),
    compile.forms_figure: lambda c: (c.forms(), 1.05),
    compile.calibration_figure: lambda c: (c.layers(), c.histograms(), "percentile"),
    compile.sensitivity_figure: lambda c: (c.sensitivity(),),
    compile.times_figure: lambda c: (c.times(),),
    compile.pareto_figure: lambda c: (
        [*c.artefacts(), *(INT8 | {"mode": mode, "draw": d} for mode in compile.MODES for d in range(2))],
        "fp32", 0.1,
    ),
    compile.performance_figure: lambda c: (c.performance(),),
    compile.sweep_figure: lambda c: (c.swept(),),
    infer.first_look: lambda c: (picture(), picture(1), torch.nn.Identity()),
    infer.strips_figure: lambda c: (c.shown(),),
    infer.extremes_figure: lambda c: (c.shown(), c.shown()),
    infer.latency_figure: lambda c: (c.faces(), c.dtypes[-1], "onnxruntime on tensorrt, batch size 16"),
    infer.merged_figure: lambda c: (
        {
            name: {"mean": mean, "counts": np.array([3, 9, 4]), "edges": mean * np.arange(0.9, 1.06, 0.05)}
            for name, mean in (("psnr", 25.0), ("psnr_input", 20.0), ("ssim", 0.9), ("ssim_input", 0.93))
        },
    ),
    infer.chroma_figure: lambda c: (
        [{"factor": f, "psnr": 25 - (f - 1.1) ** 2, "colourfulness": 0.7 * f} for f in (0.5, 1.0, 1.5, 2.0)],
        c.dtypes[-1],
    ),
    infer.colourfulness_figure: lambda c: (c.faces(), c.dtypes[-1]),
    **dict.fromkeys((infer.distribution_figure, infer.detail_figure), lambda c: (c.faces(), c.dtypes[-1])),
    errors.drops_figure: lambda c: (c.compared(), [DROPS | {"dtype": dtype} for dtype in c.dtypes]),
    **dict.fromkeys((errors.colour_figure,), lambda c: (c.compared(),)),
    errors.error_maps_figure: lambda c: (c.maps(),),
    errors.worst_figure: lambda c: (c.maps(), "int8_bf16"),
    errors.groups_figure: lambda c: (c.groups(),),
    errors.trends_figure: lambda c: ([row | {"shown": row["drop_low"] is not None} for row in c.groups()],),
    errors.depth_figure: lambda c: (c.feature_maps(),),
    errors.half_stress_figure: lambda c: (c.stress(),),
    train.losses_figure: lambda c: (c.log(), c.name("prior")),
    train.samples_figure: lambda c: (dict.fromkeys((10, 99), picture()), ("given", "truth"), c.name("prior")),
    train.interpolation_figure: lambda c: (picture(0, 8, c.count, 8),),
    train.mixing_figure: lambda c: [*(picture(0, 8, *s) for s in ((3,), (c.count,), (3, c.count))), *STYLES],
}  # fmt: skip

UNITS = re.compile(
    r"\[.+\]|\b(ms|seconds|dB|MiB|GFLOPs|millions|pixels|images?|nodes|convolutions|layers|step|L1|latent)\b|"
    r"share|loss|part of|SSIM|CIELAB|ΔE|correlation|deviation|factor|units|magnitude|variance|olourful|logit|"
    r"cosine|gradient|softplus|J'y"
)  # a unit, or a number without one


def drawn(figure, monkeypatch):
    """Draw with Agg; return the picture, and the box of every text that was drawn."""
    texts, draw, canvas = [], Text.draw, FigureCanvasAgg(figure)
    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, *args: (texts.append(text), draw(text, *args)))
        canvas.draw()
    seen = [text for text in texts if text.get_visible() and text.get_text().strip()]
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in seen}
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255, boxes


def meet(boxes, first, second):
    """Return whether two texts overlap; turned tick labels are parallel lines, so their distance counts."""
    one, two, angle = boxes[first], boxes[second], first.get_rotation()
    if angle % 90:
        ends = [text.get_transform().transform(text.get_position())[0] for text in (first, second)]
        height = first.get_fontsize() * first.get_figure(root=True).dpi / 72
        return abs(ends[0] - ends[1]) * np.sin(np.radians(angle)) < 0.9 * height
    width, height = np.minimum(one.max, two.max) - np.maximum(one.min, two.min)
    return min(width, height) > 0.5


def label_of(axis, every, name):
    """Return an axis's label, or that of a panel in the same column (x) or row (y), which speaks for it."""
    span, place = {"x": "colspan", "y": "rowspan"}[name], axis.get_subplotspec()
    specs = ((other, other.get_subplotspec()) for other in every if place)
    same = [other for other, spec in specs if spec and getattr(spec, span) == getattr(place, span)]
    return next(filter(None, (getattr(one, f"get_{name}label")() for one in (axis, *same))), "")


def faults(figure, monkeypatch):
    """Return in words what keeps a reader from understanding the figure."""
    pixels, boxes = drawn(figure, monkeypatch)
    found = ["blank"] if pixels.std() < 0.005 else []
    every = [axis for axis in figure.axes if axis.get_visible()]
    titles = [text for axis in every for text in (axis.title, axis._left_title) if text in boxes]
    if not titles and not any(part.get_suptitle() for part in (figure, *figure.subfigs)):
        found.append("no title")
    far = [text for text, box in boxes.items() if min(*box.min, *(figure.bbox.max - box.max)) < -2]  # pixels
    found += [f"outside the canvas: {text.get_text()}" for text in far]
    groups = [titles]
    for axis, name in product(every, "xy"):
        ticks = [text for text in getattr(axis, f"{name}axis").get_ticklabels(which="both") if text in boxes]
        plain = [re.sub(r"mathdefault|times|[-$\\{}^−+.,%\s]", "", text.get_text()) for text in ticks]
        label = label_of(axis, every, name)
        if ticks and all(text.isdigit() for text in plain) and not UNITS.search(label):
            found.append(f"no unit: {name} of {axis.get_title() or axis.get_title('left')}, {label!r}")
        groups.append(ticks)
    pairs = [pair for texts in groups for pair in combinations(texts, 2) if meet(boxes, *pair)]
    return found + [f"overlap: {first.get_text()} and {second.get_text()}" for first, second in pairs]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", SAMPLES, ids=lambda draw: f"{draw.__module__[14:]}.{draw.__name__}")
def test_figure_can_be_read(draw, case, monkeypatch):
    figure = draw(*SAMPLES[draw](CASES[case]))
    assert faults(figure, monkeypatch) == []
    assert figure.get_figwidth() <= plots.WIDEST and plots.alternative_text(figure)


def test_a_notebook_shows_charts_sharp_and_no_wider_than_its_text(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, **about: shown.append((data, about["metadata"])))
    compile.latency_figure(CASES["many"].artefacts())._ipython_display_()
    (data, metadata), about = shown[0], shown[0][1]["image/png"]
    width, height = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size
    assert (width, height) == pytest.approx((2 * about["width"], 2 * about["height"]), abs=1)
    assert about["width"] <= 1000 and "fp32" in about["alt"] and list(metadata) == list(data)


def test_photographs_are_large_and_samples_small_and_named(monkeypatch):
    case, two = CASES["many"], ["astronaut_0000", "grace_hopper"]
    names = [*two, *(f"prior_{i:04d}" for i in range(6))]
    shown = [replace(face, name=name) for face, name in zip(case.shown(), names[::2], strict=False)]
    maps = [replace(face, name=name) for face, name in zip(case.maps(), names[::2], strict=False)]
    figures = [
        data.pairs_figure(*[[picture()] * 8] * 2, names, two), infer.strips_figure(shown, two),
        infer.extremes_figure(shown[1:], shown[1:], two), errors.error_maps_figure(maps, two),
        errors.worst_figure(maps, "int8", two),
    ]  # fmt: skip
    for figure in figures:
        assert faults(figure, monkeypatch) == []
        _, boxes = drawn(figure, monkeypatch)
        texts = " ".join(text.get_text() for text in boxes)
        assert "sample" in texts and "prior_0" not in texts
        for part in {1: "eye mouth upper lower", 3: "eye upper"}.get(figures.index(figure), "").split():
            assert part in texts
    for figure in (figures[0], figures[4]):
        pictures = [axis.bbox.width for axis in figure.axes if axis.get_visible() and axis.images]
        assert pictures[0] > 1.3 * pictures[-1]


def test_every_figure_has_a_sample():
    modules = (architecture, compile, data, errors, export, infer, train)
    functions = [f for m in modules for name, f in vars(m).items() if isfunction(f) and name[0] != "_"]
    assert {f for f in functions if f.__annotations__.get("return") == "Figure"} == set(SAMPLES)


def test_faults_are_found(monkeypatch):
    figure, axes = plots.new_figure(1, 2, 3.0, 1.5)
    assert faults(figure, monkeypatch)[0] == "no title"
    axes[0, 0].set(xticks=range(3), xlabel="name", title="T" * 60)
    axes[0, 0].set_xticks(range(3), ["a" * 30] * 3)
    told = " ".join(faults(figure, monkeypatch))
    assert all(fault in told for fault in ("outside the canvas: TTT", "overlap: aaa", "no unit: y of TTT"))
    assert faults(plots.empty_figure(1, 1), monkeypatch) == ["blank", "no title"]
    assert faults(compile.times_figure({}), monkeypatch) == []  # backends without a profile leave a note


def test_tables_hold_titles_formats_and_gaps():
    rows = [{"dtype": "int8", "drop": 0.25, "faces": 3}, {"dtype": "fp16", "drop": None, "faces": 4}]
    html = plots.table(rows, {"drop": ("drop [dB]", "{:+.1f}")}, "dtype").to_html()
    assert all(text in html for text in ("drop [dB]", "+0.2", "–", "int8")) and "faces" not in html
    assert plots.minus("-1.5e-03") == "−1.5e−03" and plots.minus("face-1 int8-bf16") == "face-1 int8-bf16"
    assert (
        "text-align: right" in html
        and "text-align: left" in html
        and "−0.5"
        in plots.table(
            [{"dtype": "a", "drop": -0.5}], {"drop": ("drop [dB]", "{:.1f}")}, {"dtype": "number format"}
        ).to_html()
    )
    rows = [{"score": s, "drop": -4e-6, "drop_low": None} for s in ("psnr", "ssim")]
    rows[1]["drop"] = 5.2e-4
    told = [(row["score"], row["drop"]) for row in errors.in_words(rows)]
    assert told == [("PSNR [dB]", "+0.000"), ("SSIM", "+0.00052")]
    assert errors.in_words(rows)[0]["drop_low"] == "–"
    assert "one" in plots.facts({"first": {"a": "one"}, "second": {"a": 2}}).to_html()
    assert "two" in plots.facts({"a": "two"}).to_html()


def test_only_logged_terms_have_panels_and_evaluations_are_dots():
    rows = [{"step": s, "real_logit": 0.5, "fake_logit": -0.5, "r1": 0.1 * s**2} for s in range(1, 21)]
    rows[9]["held_out_logit"] = 0.2
    said, slope = (axis for axis in train.losses_figure(rows).axes if axis.get_visible())
    assert said.get_title() == "what the discriminator says" and slope.get_title()[:2] == "R1"
    assert len(said.get_legend().get_texts()) == 3
    assert said.lines[-1].get_marker() == "o" and said.lines[-1].get_xdata().tolist() == [10]
    assert (said.get_yscale(), slope.get_yscale()) == ("linear", "log")
    assert slope.lines[0].get_alpha() < 1 and len(slope.lines[1].get_ydata()) == 20


def test_samples_walks_and_mixtures_stand_in_their_places():
    samples = train.samples_figure({s: np.full((30, 40, 3), s, np.uint8) for s in (20, 40)}, ("a", "b"))
    assert [axis.get_title() for axis in samples.axes] == ["step 20", "step 40"]
    assert samples.axes[1].images[0].get_array()[0, 0, 0] == 40
    titles = [axis.get_title() for axis in train.interpolation_figure(picture(0, 8, 2, 3)).axes]
    assert titles == ["0.00", "0.50", "1.00", "", "", ""]
    sources = [np.full((*shape, 4, 4, 3), v, np.uint8) for v, shape in ((1, (2,)), (2, (3,)), (3, (2, 3)))]
    shown = [a.images[0].get_array()[0, 0, 0] for a in train.mixing_figure(*sources).axes if a.images]
    assert shown == [2, 2, 2, 1, 3, 3, 3, 1, 3, 3, 3]


def test_figures_say_in_words_what_they_show_and_what_was_found():
    named = plots.picture_grid([[picture()] * 3], [["input", "output", "truth"]], ["ada"])[0]
    assert plots.alternative_text(named) == "input; output; truth of ada"
    row = {"original_overflow": None, "deploy_overflow": None, "deploy_psnr": 75.2}
    rows = [row | {"factor": f, "original_psnr": p} for f, p in ((1e-4, None), (1.0, 72.0), (1e6, None))]
    title = errors.half_stress_figure(rows).axes[0].get_title("left")
    assert title == "fp16: deploy form holds 75 dB; original formulation breaks at 10⁻⁴ and 10⁶"


def test_colours_of_dtypes_mean_nothing_else():
    """A figure in which fp32's blue is a batch size is read wrong."""
    for path in sorted((repository_root() / "gpenlib/plots").glob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            used = [colour for colour in plots.DTYPE_COLOURS.values() if colour.lower() in line.lower()]
            assert not used or '"fp32": ' in line, f"{path.name}:{number}: {used}"


def test_a_veil_is_named_only_where_one_can_be_seen():
    rows = [
        {"dtype": d, "colour_shift_to_fp32": 0.1, "bias": b} for d in ("fp16", "int8") for b in (0.1, -0.3)
    ]
    axis = errors.colour_figure(rows).axes[1]
    assert axis.get_title() == "No precision leaves a visible veil: 0.30 levels at most"
    axis = errors.colour_figure([*rows, rows[-1] | {"bias": -3.4}]).axes[1]
    assert axis.get_title() == "The widest veil is that of int8: −1.20 levels"


def test_a_filled_mark_is_a_trend_that_stands_and_the_title_names_the_strongest():
    row = {"trait": "lightness", "score": "psnr", "low": 0.1, "high": 0.9, "shown": True}
    rows = [row | {"dtype": d, "correlation": r} for d, r in (("fp16", 0.2), ("int8", -0.75), ("bf16", 0.5))]
    rows[0]["shown"] = False  # its interval leaves out zero, but it does not stand once corrected
    axis = errors.trends_figure(rows).axes[0]
    looks = {marks.get_label(): marks.lines[0].get_markerfacecolor() for marks in axis.containers}
    assert looks == {d: "white" if d == "fp16" else plots.DTYPE_COLOURS[d] for d in ("fp16", "int8", "bf16")}
    assert axis.get_title() == "int8's loss in PSNR follows brightness, ρ = −0.75, and 1 more"
    none = errors.trends_figure([row | {"shown": False} for row in rows]).axes[0]
    assert none.get_title().startswith("No precision's loss in PSNR is shown")


def test_copies_of_other_outputs_are_not_drawn_again():
    scores = {"fp32": 0, "bf16": 0, "fp16": 0.001, "int8": 0.2, "int8_bf16": 0.2}
    rows = [
        {"dtype": d, "psnr_drop": s, "ssim_drop": s, "colour_shift_to_fp32": s, "bias": 2 * s}
        for d, s in scores.items()
    ]
    left, right = errors.drops_figure(rows, []).axes[:2]
    assert title_of(left) == "int8 loses most PSNR: 0.200 dB"
    assert title_of(right).startswith("int8 loses most SSIM")
    shift, bias = errors.colour_figure(rows).axes[:2]
    assert title_of(shift) == "Mean colour moves most in int8: ΔE 0.20"
    assert title_of(bias).startswith("No precision")
    assert [text.get_text() for text in shift.get_xticklabels()] == ["fp16", "int8"]
    assert title_of(errors.drops_figure(rows[:2], []).axes[0]) == "None loses PSNR", "bf16 alone is drawn"


def test_int8_is_drawn_at_the_very_maps_that_are_measured_alone():
    row = {"module": "convs.9", "layer": None, "shape": [8, 4, 4], "quantised": False, "sqnr_db": 20.0}
    row |= dict.fromkeys(("isolated_sqnr_db", "output_psnr_alone"))
    conv = row | {"layer": "convs.9.conv", "quantised": True, "sqnr_db": 31.0, "isolated_sqnr_db": 33.0}
    rows = [conv | {"output_psnr_alone": 60.0}, row, row | {"module": "to_rgbs.4", "sqnr_db": 50.0}]
    lines = {line.get_label(): line.get_ydata().tolist() for line in errors.depth_figure(rows).axes[0].lines}
    assert lines["all layers in int8"] == [31] and lines["this layer alone in int8"] == [33]
    assert lines["the picture so far"] == [50]


def test_what_is_said_of_the_choice_is_computed():
    rows = [
        {"dtype": "fp32", "mode": None, "draw": 0, "psnr_drop": 0.0},
        {"dtype": "int8", "mode": "max", "draw": 0, "psnr_drop": 0.2},
        {"dtype": "int8", "mode": "mse", "draw": 0, "psnr_drop": 0.01},
        {"dtype": "int8", "mode": "max", "draw": 1, "psnr_drop": -0.03},
        {"dtype": "int8_bf16", "mode": "max", "draw": 0, "psnr_drop": 0.2},
    ]
    times = {"fp32": [9.0] * 4, "int8": [3.1, 2.9, 3.1, 2.9], "int8_bf16": [2.95] * 4}
    rows = [row | {"times_ms": times[row["dtype"]], "median_ms": min(times[row["dtype"]])} for row in rows]
    assert compile.best_within(rows, 0.1)["dtype"] == "fp32", "as it was built, int8 loses more"
    assert compile.best_within(rows, 0.3) is rows[1], "none is clearly faster: the simpler one"
    clearly = [*rows[:4], rows[4] | {"times_ms": [2.0] * 4, "median_ms": 2.0}]
    assert compile.best_within(clearly, 0.3) is clearly[4]
    assert "int8 loses +0.200 dB as it was built, and -0.030 dB with other" in compile.draws_note(rows)
    assert "not tried" in compile.draws_note(rows[:3])
    assert [compile.change(drop) for drop in (0.2, -0.025)] == ["0.200 dB lost", "0.025 dB gained"]


def test_titles_of_forms_follow_the_times():
    def title(*times, taken=0):
        rows = [
            {"layer": "generator.convs.7.conv", "form": form, "ms": ms, "chosen": place == taken}
            for place, (form, ms) in enumerate(zip(FORMS["Conv"], times, strict=True))
        ]
        return compile.forms_figure(rows, 1.05).axes[0].get_title("left")

    assert "(the best saves 3.0% on convs.7)" in title(10.0, 9.7)
    assert "all take longer" in title(10.0, 11.0)
    assert "another form: 1 of 1" in title(10.0, 8.0, taken=1)


def test_parity_is_drawn_at_its_place_and_its_margin_is_computed():
    rows = [{"dtype": "fp32", "psnr_mean": 134.7, "psnr_worst": 133.6},
            {"dtype": "fp16", "psnr_mean": 81.2, "psnr_worst": 80.7}]  # fmt: skip
    axis = compile.parity_figure(rows, LEAST_PSNR).axes[0]
    assert "by at least 30 dB" in axis.get_title("left") and axis.get_xlim()[1] > 150
    assert any(line.get_xdata() == [134.7] for line in axis.lines if len(line.get_xdata()) == 1)
    rows[1] |= {"psnr_worst": 45.0, "psnr_mean": None}  # another face's outputs are equal
    assert "below the limit by 5.0 dB" in compile.parity_figure(rows, LEAST_PSNR).axes[0].get_title("left")


def test_modes_close_together_share_a_label_and_the_one_closest_to_fp32_is_told():
    losses = {"max": 0.03, "percentile": 0.021, "mse": 0.022}
    closeness = {"max": 48.0, "percentile": 47.0, "mse": 48.6}  # what loses least may just be paler
    fp32 = {"dtype": "fp32", **MEASURED, "psnr_drop": 0.0, "psnr_to_fp32": 100.0}
    modes = [
        INT8 | {"mode": mode, "psnr_drop": losses[mode], "psnr_to_fp32": closeness[mode]} for mode in losses
    ]
    rows = [fp32, *modes]
    figure = compile.pareto_figure(rows, "int8", 0.1)
    assert figure.get_suptitle().endswith("0.030 dB lost (built with max: mse comes 0.6 dB closer to fp32)")
    assert "int8, 3 modes ◎" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.axes[0].patches[0].get_extents().y0 <= figure.axes[0].bbox.y0 + 1, "the shade ends early"
    figure = compile.pareto_figure([fp32, INT8 | {"mode": "max", "psnr_drop": 0.2}, rows[2]], "int8", 0.1)
    assert {"int8, max ◎", "int8, percentile"} <= {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize("drop", [-0.5, -0.028, 0.0, 0.03, 0.5])
def test_markers_of_losses_and_of_gains_lie_inside_their_axes(drop):
    rows = [
        {"dtype": "fp32", **MEASURED, "psnr_drop": 0.0, "psnr_to_fp32": 100.0},
        INT8 | {"psnr_drop": drop},
    ]
    axis = compile.pareto_figure(rows, "int8", 0.1).axes[0]
    height = abs(np.subtract(*axis.get_ylim()))
    assert all(abs(place - end) > 0.05 * height for place in (0.0, drop) for end in axis.get_ylim())


def test_names_that_a_runtime_gave_are_words():
    names = {
        "generator.convs.9.conv": "convs.9",
        "generator.to_rgbs.4.conv.skip": "to_rgbs.4, skip half",
        "node_leaky_relu_25.skip": "leaky relu 25, skip half",
        "ecd1.blur.conv_abcd_acdb_ecd1.conv/WithoutBiases": "ecd1, conversion",
        "ecd1.blur.conv_f32_u8_ecd1": "ecd1, conversion",
        "encoder.node_2": "encoder.node_2",
    }
    assert {name: plots.short_layer(name) for name in names} == names


@pytest.mark.parametrize(
    ("drop", "title"),
    [(-0.025, "no loss shown on 8 calibration faces"), (0.2, "0.200 dB lost on 8 calibration faces")],
)
def test_a_gain_on_few_faces_is_no_loss_shown(drop, title):
    measured = next(iter(CASES.values())).sensitivity()
    steps = [row | {"drop_db": drop} for row in measured["steps"]]
    left, right = compile.sensitivity_figure(measured | {"steps": steps}).axes[:2]
    assert title_of(right) == f"All in int8: {title}"
    lengths = [np.ptp(stem[:, 0]) for stem in left.collections[0].get_segments()]
    assert lengths == sorted(lengths, reverse=True), "the worst layer stands first, and has the longest stem"


def test_colour_of_the_middle_face_stands_beside_that_of_the_means():
    rows = [
        {"colourfulness": c, "colourfulness_truth": t, "colour_shift": 1.0}
        for c, t in ((9, 10), (8, 8), (20, 60))
    ]
    title = title_of(infer.colourfulness_figure(rows, "fp32").axes[0])
    assert title == "Of the truth's colour: median 90%, in sum 47%"
    scores = [{"psnr": 22.976, "ssim": 0.9442}] * 2
    titles = [title_of(axis) for axis in data.baseline_figure(scores, [{"chroma": 9.0}] * 2).axes]
    assert titles == [f"Doing nothing: {score} on average" for score in ("PSNR 22.98 dB", "SSIM 0.944")]


def test_times_are_told_once_and_inputs_named_after_their_layer():
    row = {"name": "mul_7.skip_quantised", "kind": "element-wise", "precision": "f32", "ms": 11.0}
    note = compile.times_note({"int8": [row], "fp32": [row]}, [INT8 | {"median_ms": 10.0}])
    assert "add up to 1.1 times" in note
    layer = {"name": "generator.convs.8.conv", "tensors": ["mul_7.main", "mul_7.skip"]}
    labels = compile.times_figure({"int8": [row]}, [layer]).axes[1].get_yticklabels()
    assert [text.get_text() for text in labels] == ["convs.8, skip input  (f32)"]
    assert compile.unless_zero([row | {"draw": 0}], "draw", "draw") == {}
    assert compile.unless_zero([row], "ms", "time") == {"ms": "time"}


def title_of(axis):
    return axis.get_title() or axis.get_title("left")


@pytest.mark.parametrize(
    ("times", "title"),
    [
        ([10.0] * 8 + [9.7] * 8, "Second half of the run: −3%"),
        ([90.0] * 12 + [53.0] * 4, "Timed on a busy machine:\n8 of 10 times of fp32 span a factor of 1.7"),
        ([10.0] * 8 + [20.0] * 8, "Timed on a busy machine:\n8 of 10 times of fp32 span a factor of 2.0"),
    ],
)
def test_a_disturbed_run_is_said_to_be_one(times, title):
    course = infer.latency_figure([{"ms": ms} for ms in times], "fp32", "here").axes[1]
    assert title_of(course) == title


def test_time_of_photographs_names_the_longest_step_and_draws_those_that_took_time(monkeypatch):
    row = {"photo": "a.png", "dtype": "int8", "find_s": 3.0, "run_s": 0.9, "write_s": 0.1, "upscale_s": 1e-4}
    figure = photos.time_figure([row, row | {"photo": "b.png"}, row | {"dtype": "fp32", "run_s": 99.0}])
    assert title_of(figure.axes[0]) == "The longest step is “find faces”: 75% of the time, in int8"
    steps = [text.get_text() for text in figure.legends[0].get_texts()]
    assert steps == ["find faces", "run the network", "write all results"]
    assert faults(figure, monkeypatch) == []


def test_titles_of_graphs_and_of_losses_are_findings():
    graph = {"operators": {"Conv": 3}, "nodes": 400, "constant_convolutions": 16, "runtime_convolutions": 22}
    deploy = graph | {"nodes": 410, "constant_convolutions": 38, "runtime_convolutions": 0}
    graphs = {"deploy.onnx": deploy, "training.onnx": graph}
    assert title_of(export.convolution_figure(graphs).axes[0]).endswith("in every call: 22 → 0 of 38")
    title = title_of(export.operator_figure(graphs).axes[0])
    assert (
        title == "Most nodes, 410: deploy form, dynamo exporter; fewest, 400: training form, dynamo exporter"
    )
    rows = [{"step": step, "adversarial": 1.0 * step} for step in range(1, 9)]
    assert train.losses_figure(rows, "prior").get_suptitle() == "prior"
    assert "0.5 → 0.5" in train.losses_figure([r | {"content": 0.5} for r in rows], "x").get_suptitle()
    units = [
        train.losses_figure([r | {"content": c} for r in rows]).axes[0].get_ylabel() for c in (-21.0, 0.1)
    ]
    assert units == ["dB of the square", "pixels in [-1, 1]"]


def test_every_loss_that_has_a_weight_is_drawn():
    weights = {name for name, field in LossWeights.model_fields.items() if field.annotation is float}
    assert len(weights) > 8 and weights <= {term for *_, terms in train.PANELS for term in terms}
