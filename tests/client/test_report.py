"""The before/after table: what is bad is said first and in words, never only by a colour."""

import io
from pathlib import Path

from rich.console import Console

from modelpress.cli.compress import exit_code, target_of
from modelpress.cli.report import render
from modelpress.client.resources import File
from modelpress.report import (
    Agreement,
    Environment,
    FileSize,
    Latency,
    Quality,
    Report,
    Size,
    TargetOutcome,
    Timing,
    Traffic,
    Verdict,
)

HERE = Environment(
    cpu="some CPU", isa=("avx2",), device="cpu", threads=2, python="3.11", torch="2.13", onnxruntime="1.32"
)


def a_size(count: int) -> Size:
    return Size(bytes=count, zstd_bytes=count // 2, parameters=100, nonzeros=40, macs=None)


def a_latency(ratio: float, low: float, high: float) -> Latency:
    timing = Timing(median_ms=1.0, p95_ms=1.5)
    return Latency(
        batch=1, threads=1, original=timing, result=timing, ratio=ratio, ratio_low=low, ratio_high=high, pairs=50
    )


def a_report(verdict: Verdict = Verdict.PASSED, after: int = 25_000, **fields: object) -> Report:
    base = Report(
        verdict=verdict,
        size=(a_size(100_000), a_size(after)),
        size_ratio=100_000 / after,
        latency=(a_latency(2, 1.9, 2.1),),
        environment=HERE,
    )
    return base.model_copy(update=fields)


def shown(report: Report) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(report))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the StringIO above


def row(report: Report, start: str) -> str:
    return next(line for line in shown(report) if line.startswith(start))


def test_the_verdict_and_its_reasons_come_before_every_figure() -> None:
    lines = shown(a_report(Verdict.DEGRADED, reasons=("accuracy fell", "the file is smaller")))
    assert "DEGRADED" in lines[1]
    assert "accuracy fell" in lines[2]
    assert "file" in lines[3]


def test_a_file_that_grew_and_a_model_that_got_slower_are_not_praised() -> None:
    report = a_report(Verdict.NO_GAIN, after=200_000, latency=(a_latency(0.5, 0.4, 0.6),))
    assert row(report, "file ").endswith("2.00× LARGER")
    assert row(report, "latency").endswith("0.50× SLOWER (0.40 to 0.60)")


def test_the_packed_size_is_shown_where_it_is_known() -> None:
    sizes = tuple(
        known.model_copy(update={"packed_bytes": packed})
        for known, packed in ((a_size(100_000), 80_000), (a_size(25_000), 4_000))
    )
    assert row(a_report(size=sizes), "file, packed").endswith("20.00× smaller")
    assert not any(line.startswith("file, packed") for line in shown(a_report()))


def test_a_difference_within_the_noise_is_called_unclear() -> None:
    assert row(a_report(latency=(a_latency(1.2, 0.8, 1.5),)), "latency").endswith("1.20× unclear (0.80 to 1.50)")


def test_quality_has_its_number_of_examples_and_interval() -> None:
    quality = Quality(
        metric="accuracy", n=2000, original=0.928, result=0.9265, change=-0.0015, low=-0.0067, high=0.0037
    )
    line = row(a_report(quality=quality), "accuracy")
    assert line.split()[:4] == ["accuracy,", "n", "=", "2000"]
    assert line.endswith("-0.0015 (-0.0067 to +0.0037)")


def test_missed_targets_are_said_with_the_verdict() -> None:
    missed = TargetOutcome(target="size_ratio", wanted=8, measured=4, met=False)
    report = a_report(targets=(missed,), targets_met=False)
    assert "PASSED  TARGETS NOT MET" in shown(report)[1]
    assert any(line.startswith("size_ratio") and "NOT MET" in line for line in shown(report))


def test_exit_codes() -> None:
    assert [exit_code(a_report(verdict)) for verdict in Verdict] == [0, 3, 4]
    assert exit_code(a_report(targets_met=False)) == 5
    assert exit_code(a_report(Verdict.DEGRADED, targets_met=False)) == 3


def test_every_file_is_listed_by_its_format() -> None:
    files = (FileSize(format="packed", bytes=20_480, ratio=5), FileSize(format="pt2", bytes=102_400, ratio=0.98))
    report = a_report(files=files)
    assert row(report, "file as packed").split()[3:] == ["97.7", "KiB", "20.0", "KiB", "5.00×", "smaller"]
    assert row(report, "file as pt2").split()[3:] == ["100.0", "KiB", "1.02×", "LARGER"]
    assert row(a_report(files=(FileSize(format="onnx", bytes=1024, ratio=9),)), "file ").split()[3:5] == ["1.0", "KiB"]


def test_with_a_teacher_both_are_compared_with_it() -> None:
    before, after = (Agreement(output="scores", n=500, top1=top1, cosine=0.9, max_abs=1) for top1 in (0.31, 0.95))
    lines = shown(a_report(agreement=(after,), agreement_before=(before,), agreement_with="teacher"))
    (line,) = [line for line in lines if "with the teacher" in line]
    assert line.index("31.00% same class") < line.index("95.00% same class")


def test_what_crosses_the_wire_is_shown_where_it_changed() -> None:
    lines = shown(a_report(traffic=Traffic(sent_bytes=(4000, 1000), answered_bytes=(40, 40))))
    (sent,) = [line for line in lines if "sent, an example" in line]
    assert "4.00× smaller" in sent


def test_every_file_of_a_result_gets_a_path_of_its_own(tmp_path: Path) -> None:
    files = [
        File(format="onnx", filename="net.onnx", size_bytes=1, sha256=""),
        File(format="ticket", filename="net.ticket.onnx", size_bytes=1, sha256=""),
    ]
    for output in (None, tmp_path / "small.onnx"):
        paths = [target_of(output, "net.onnx", file, alone=False) for file in files]
        assert [path.name.partition(".")[2] for path in paths] in (
            ["compressed.onnx", "compressed.ticket.onnx"],
            ["onnx", "ticket.onnx"],
        )
