"""Many workers, crashes, sleepers and reconcilers over the same rows: no job is lost, none has two results.

Hypothesis invents the histories; PostgreSQL plays them, with leases that end when the test says so.
"""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import sampled_from
from sqlalchemy import ColumnElement, Engine, func, select, text, update
from sqlalchemy.orm import Session
from uuid6 import uuid7

from app.db.tables import FINAL, Job, JobEvent, Model, Tenant
from app.storage.base import BlobStore
from modelpress.models import ModelSpec, ModelStats, Signature
from modelpress.report import Environment, Report, Size, Verdict
from modelpress.run import ResultFile, RunError
from tests.worker.jobs import Desk
from workers.outcomes import finish_compression
from workers.ownership import Claim, News, Ownership, claim
from workers.takeover import take_back
from workers.transitions import OWNED, FencedError

FILE = ResultFile(format="onnx", path="out/model.onnx")
SPEC = ModelSpec(format="onnx", signature=Signature(inputs=(), outputs=()), stats=ModelStats())
SIZE = Size(bytes=1, zstd_bytes=1, parameters=1, nonzeros=1, macs=None)
ENVIRONMENT = Environment(cpu="", isa=(), device="cpu", threads=1, python="", torch="", onnxruntime="")
REPORT = Report(verdict=Verdict.PASSED, size=(SIZE, SIZE), size_ratio=1, latency=(), environment=ENVIRONMENT)
CRASH = RunError(code="runner_crashed", message="It crashed.", retryable=True)
EXPIRED = Job.lease_until < func.clock_timestamp()
REFUSAL = RunError(code="step_failed", message="It cannot be done.")


@pytest.fixture
def newest(desk: Desk) -> Ownership:
    """Of a running job."""
    desk.compress(b"a model")
    return own(desk.engine, claim(desk.engine, ["cpu"], "tests", 60))


def own(engine: Engine, claimed: Claim | None) -> Ownership:
    assert claimed is not None
    return Ownership(engine, claimed.job_id, claimed.attempt)


def finish(store: BlobStore, tenant: UUID, ownership: Ownership) -> UUID | None:
    with store.writer(tenant) as writer:
        writer.write(b"smaller")
        writer.finish()
        return finish_compression(ownership, SPEC, REPORT, [(FILE, writer)], "log")


def test_a_claim_takes_the_best_job_that_may_run_now(desk: Desk) -> None:
    desk.compress(b"a", queue="gpu")
    desk.compress(b"b", priority=5)
    desk.compress(b"c", not_before=func.now() + text("interval '1 hour'"))
    best = desk.compress(b"d", priority=1)
    claimed = claim(desk.engine, ["cpu"], "tests", 60)
    assert claimed is not None
    assert (claimed.job_id, claimed.attempt) == (best, 1)
    job = desk.job(best)
    assert (job.status, job.worker) == ("running", "tests")


def test_two_claims_never_get_the_same_job(desk: Desk) -> None:
    first, second = desk.compress(b"a"), desk.compress(b"b")
    with Session(desk.engine) as session:
        session.execute(select(Job).where(Job.id == first).with_for_update())  # as a claim that has not committed yet
        claimed = claim(desk.engine, ["cpu"], "tests", 60)
    assert claimed is not None
    assert claimed.job_id == second


def test_a_silent_worker_is_fenced_from_every_write(desk: Desk, newest: Ownership) -> None:
    with Session(desk.engine) as session:
        session.execute(update(Job).values(lease_until=func.now() - text("interval '1 second'")))
        session.commit()
    assert take_back(desk.engine, EXPIRED) == 1
    before = desk.story(newest.job_id)
    writes: list[Any] = [
        newest.status,
        lambda: newest.renew(60),
        lambda: newest.report(News({"step": "x"}, [("metric", {})])),
        lambda: newest.fail(REFUSAL),
        lambda: newest.retry(CRASH, 0),
        newest.cancel,
        newest.give_back,
        lambda: finish(desk.store, desk.tenant, newest),
    ]
    for write in writes:
        with pytest.raises(FencedError):
            write()
    assert desk.story(newest.job_id) == before
    assert desk.results(newest.job_id) == []


def test_the_pause_between_attempts_doubles(desk: Desk, newest: Ownership) -> None:
    pauses = []
    for _ in range(2):
        newest.retry(CRASH, 10)
        with Session(desk.engine) as session:
            pauses.append(session.scalar(select(func.extract("epoch", Job.not_before - func.clock_timestamp()))))
            session.execute(update(Job).values(not_before=func.now()))
            session.commit()
        newest = own(desk.engine, claim(desk.engine, ["cpu"], "tests", 60))
    assert [round(float(pause), -1) for pause in pauses] == [10, 20]


def test_a_cancellation_wins_over_whatever_the_run_came_to(desk: Desk) -> None:
    endings: list[Any] = [
        lambda owner: owner.fail(REFUSAL),
        lambda owner: owner.retry(CRASH, 0),
        lambda owner: owner.give_back(),
        lambda owner: finish(desk.store, desk.tenant, owner),
    ]
    for end in endings:
        job_id = desk.compress(b"a model")
        owner = own(desk.engine, claim(desk.engine, ["cpu"], "tests", 60))
        with Session(desk.engine) as session:
            session.execute(update(Job).where(Job.id == job_id).values(status="canceling"))
            session.commit()
        end(owner)
        assert desk.job(job_id).status == "canceled"
        assert desk.results(job_id) == []


def machine(engine: Engine, store: BlobStore) -> type[RuleBasedStateMachine]:
    class Workers(RuleBasedStateMachine):
        """All truth is in the rows; the test remembers only who claimed what, so that the old can come back."""

        attempts = Bundle("attempts")

        @initialize()
        def begin(self) -> None:
            with Session(engine) as session:
                tenant = Tenant(name=f"tenant {uuid7()}")
                session.add(tenant)
                session.commit()
                self.desk = Desk(engine, store, tenant.id)
            self.queue = f"q{uuid7().hex}"
            self.jobs: list[UUID] = []
            self.succeeded: set[UUID] = set()
            self.post()

        @rule()
        def post(self) -> None:
            self.jobs.append(self.desk.compress(b"a model", queue=self.queue))

        @rule(target=attempts)
        def claim(self) -> Any:
            claimed = claim(engine, [self.queue], "hypothesis", 60)
            return multiple() if claimed is None else own(engine, claimed)

        @rule(attempt=attempts, act=sampled_from(["renew", "report", "retry", "give_back", "finish", "finish"]))
        def act(self, attempt: Ownership, act: str) -> None:
            """Any attempt, however old, may wake up and try anything."""
            job = self.desk.job(attempt.job_id)
            if job.attempt == attempt.attempt and job.status in OWNED:
                self.do(attempt, act)
            else:
                with pytest.raises(FencedError):
                    self.do(attempt, act)

        def do(self, attempt: Ownership, act: str) -> None:
            match act:
                case "renew":
                    attempt.renew(60)
                case "report":
                    attempt.report(News(None, [("metric", {"attempt": attempt.attempt})]))
                case "retry":
                    attempt.retry(CRASH, 0)
                case "give_back":
                    attempt.give_back()
                case "finish" if finish(store, self.desk.tenant, attempt) is not None:
                    assert attempt.job_id not in self.succeeded
                    self.succeeded.add(attempt.job_id)

        @rule()
        def leases_end(self) -> None:
            self.change(Job.lease_until.is_not(None), lease_until=func.now() - text("interval '1 second'"))
            take_back(engine, EXPIRED)

        @rule()
        def cancel(self) -> None:
            self.change(Job.status == "running", status="canceling")

        def change(self, which: ColumnElement[bool], **values: Any) -> None:
            with Session(engine) as session:
                session.execute(update(Job).where(which, Job.queue == self.queue).values(**values))
                session.commit()

        @invariant()
        def results_and_states_agree(self) -> None:
            with Session(engine) as session:
                told = JobEvent.data["status"].astext.in_(FINAL) & (JobEvent.job_id == Job.id)
                ends = select(func.count()).where(told).scalar_subquery()
                results = select(func.count()).where(Model.job_id == Job.id).scalar_subquery()
                for job, result_count, end_count in session.execute(
                    select(Job, results, ends).where(Job.queue == self.queue)
                ):
                    assert result_count == (job.status == "succeeded") == (job.id in self.succeeded)
                    assert end_count == (job.status in FINAL)

        def teardown(self) -> None:
            """Whatever happened, workers bring every job to an end: none is lost."""
            self.leases_end()
            while (claimed := claim(engine, [self.queue], "hypothesis", 60)) is not None:
                finish(store, self.desk.tenant, own(engine, claimed))
            assert all(self.desk.job(job_id).status in FINAL for job_id in self.jobs)

    return Workers


@pytest.mark.slow
def test_any_history_keeps_every_job_and_makes_one_result(engine: Engine, store: BlobStore) -> None:
    run_state_machine_as_test(
        machine(engine, store),
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking a history that takes seconds would take hours
            suppress_health_check=list(HealthCheck),
        ),
    )
