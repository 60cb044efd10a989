"""The before/after table: the verdict first, then each figure with what it was measured on."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from modelpress.cli.output import size, table
from modelpress.report import Agreement, FileSize, Latency, Quality, Report, Verdict

COLOURS = {Verdict.PASSED: "green", Verdict.DEGRADED: "red", Verdict.NO_GAIN: "yellow"}
ERRORS = frozenset({"mse", "mae"})
"""Metrics of which less is better."""


def render(report: Report) -> RenderableType:
    parts: list[RenderableType] = [verdict(report), figures(report)]
    if report.targets:
        parts.append(targets(report))
    parts += [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    parts.append(Text(where(report), style="dim"))
    return Group(*parts)


def verdict(report: Report) -> RenderableType:
    met = {None: "", True: "  targets met", False: "  TARGETS NOT MET"}[report.targets_met]
    text = Text(f"{report.verdict.value.upper()}{met}", style="bold")
    for reason in report.reasons:
        text.append(f"\n{reason}", style="not bold")
    colour = "red" if report.targets_met is False else COLOURS[report.verdict]
    return Panel(text, border_style=colour, expand=False)


def figures(report: Report) -> Table:
    was, now = report.size
    made = table("", "original", "result", "change")
    for column in made.columns[1:]:
        column.justify = "right"
    first, *others = report.files or (FileSize(format="onnx", bytes=now.bytes, ratio=report.size_ratio),)
    name = "file" if first.format == "onnx" else f"file as {first.format}"
    made.add_row(name, size(was.bytes), size(first.bytes), smaller(first.ratio))
    for file in others:
        made.add_row(f"file as {file.format}", "", size(file.bytes), smaller(file.ratio))
    made.add_row(
        "file, zstd -19",
        size(was.zstd_bytes),
        size(now.zstd_bytes),
        smaller(was.zstd_bytes / now.zstd_bytes),
    )
    if was.packed_bytes and now.packed_bytes:
        packed = was.packed_bytes, now.packed_bytes
        made.add_row("file, packed", *map(size, packed), smaller(packed[0] / packed[1]))
    for latency in report.latency:
        made.add_row(*latency_row(latency))
    if report.quality:
        made.add_row(*quality_row(report.quality))
    before = {agreement.output: alike(agreement) for agreement in report.agreement_before}
    taught = " with the teacher" if report.agreement_with == "teacher" else ""
    for agreement in report.agreement:
        own, n = before.get(agreement.output, ""), f"n = {agreement.n} ({report.agreement_data})"
        made.add_row(f"agreement{taught}, {agreement.output}", own, alike(agreement), n)
    made.add_row(
        "weights that are zero",
        sparsity(was.parameters, was.nonzeros),
        sparsity(now.parameters, now.nonzeros),
        "",
    )
    if report.traffic:
        for name, sizes in (("sent", report.traffic.sent_bytes), ("answered", report.traffic.answered_bytes)):
            made.add_row(f"{name}, an example", *map(size, sizes), smaller(sizes[0] / max(sizes[1], 1)))
    if report.peak_memory_bytes:
        made.add_row("memory", *map(size, report.peak_memory_bytes), "")
    return made


def alike(agreement: Agreement) -> str:
    return f"{agreement.top1:.2%} same class" if agreement.top1 is not None else f"cosine {agreement.cosine:.4f}"


def smaller(ratio: float) -> str:
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× LARGER"


def latency_row(latency: Latency) -> tuple[str, str, str, str]:
    spread = f"({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"
    sure = "faster" if latency.ratio_low > 1 else "SLOWER" if latency.ratio_high < 1 else "unclear"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return (
        f"latency, batch {latency.batch}, {threads}",
        f"{latency.original.median_ms:.3f} ms",
        f"{latency.result.median_ms:.3f} ms",
        f"{latency.ratio:.2f}× {sure} {spread}",
    )


def quality_row(quality: Quality) -> tuple[str, str, str, str]:
    interval = f"{quality.change:+.4f} ({quality.low:+.4f} to {quality.high:+.4f})"
    return (f"{quality.metric}, n = {quality.n}", f"{quality.original:.4f}", f"{quality.result:.4f}", interval)


def targets(report: Report) -> Table:
    made = table("target", "wanted", "measured", "")
    for target in report.targets:
        measured = "not measured" if target.measured is None else f"{target.measured:.4g}"
        made.add_row(target.target, f"{target.wanted:.4g}", measured, "met" if target.met else "[bold red]NOT MET[/]")
    return made


def sparsity(parameters: int, nonzeros: int) -> str:
    return f"{1 - nonzeros / parameters:.1%}" if parameters else ""


def where(report: Report) -> str:
    here = report.environment
    isa = ", ".join(here.isa)
    return f"measured on {here.cpu} ({isa}), {here.device}; onnxruntime {here.onnxruntime}, torch {here.torch}"
