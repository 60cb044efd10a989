"""What a worker would have found and measured, as small as it can be."""

from modelpress.models import ArraySpec, DatasetSpec, ModelSpec, ModelStats, Signature, TensorSpec
from modelpress.report import Agreement, Environment, Latency, Quality, Report, Size, Timing, Verdict

IMAGES = TensorSpec(name="image", dtype="float32", shape=("N", 1, 28, 28))
SCORES = TensorSpec(name="scores", dtype="float32", shape=("N", 10))

CLASSIFIER = ModelSpec(
    format="onnx",
    signature=Signature(inputs=(IMAGES,), outputs=(SCORES,)),
    stats=ModelStats(parameters=1000, nonzeros=1000, macs=5000, layers=3),
)


def dataset(*arrays: ArraySpec) -> DatasetSpec:
    return DatasetSpec(examples=100, arrays=arrays)


def array(name: str, dtype: str = "float32", shape: tuple[int, ...] = (100, 1, 28, 28), **bounds: int) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, shape=shape, **bounds)


def labels(name: str = "labels", maximum: int = 9) -> ArraySpec:
    return ArraySpec(name=name, dtype="int64", shape=(100,), minimum=0, maximum=maximum)


LABELLED = dataset(array("image"), labels())
UNLABELLED = dataset(array("image"))


def report(
    *, size: int = 1000, latency_ratio: float = 1.5, change: float = -0.001, verdict: Verdict = Verdict.PASSED
) -> Report:
    def sized(count: int) -> Size:
        return Size(bytes=count, zstd_bytes=count, parameters=1000, nonzeros=1000, macs=5000)

    return Report(
        verdict=verdict,
        size=(sized(4000), sized(size)),
        size_ratio=4000 / size,
        latency=(
            Latency(
                batch=1,
                threads=1,
                original=Timing(median_ms=1.5, p95_ms=2),
                result=Timing(median_ms=1.5 / latency_ratio, p95_ms=2),
                ratio=latency_ratio,
                ratio_low=latency_ratio - 0.1,
                ratio_high=latency_ratio + 0.1,
                pairs=100,
            ),
        ),
        quality=Quality(
            metric="accuracy", n=100, original=0.9, result=0.9 + change, change=change, low=change - 0.01, high=0.01
        ),
        agreement=(Agreement(output="scores", n=100, top1=0.99, cosine=0.999, snr_db=40, kl=0.001, max_abs=0.1),),
        agreement_data="evaluate",
        environment=Environment(
            cpu="A CPU", isa=("avx2",), device="cpu", threads=1, python="3.11", torch="2.13", onnxruntime="1.32"
        ),
    )
