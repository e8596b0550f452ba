"""Scheduled retraining: refresh, what changed, is it worth it, build, gate, promote, serve.

Everything happens in the worktree (worktree.py); the user's checkout is only read. A run that finds
nothing to do ends before any stage is started. Its end says how it went:

| state | meaning |
|---|---|
| ``NothingToDo`` | nothing changed since the promotion, or only what was refused or rolled back |
| ``NotWorthIt`` | too little changed (``retrain.drift``); it is looked at again next time |
| ``Promoted`` | built, accepted by the gate, in production |
| ``Refused`` (failed) | built, and refused by the gate; all reasons are in the message |
| ``Stopped`` (failed) | a source is missing documents; nothing was built on it |
| ``Busy`` (failed) | another retraining, promotion or rollback is under way |

``python -m flows.retrain [--force]``; on a schedule: ``make deploy``.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State

from flows import build as building
from flows import dvc, heartbeat, latency, promote, reasons
from flows.drift import Verdict, judge, sort_changes
from flows.drift_plots import drift_figures
from flows.evidence import find_same, pick_texts, read_drifts, read_evidence
from flows.gate import Decision, decide
from flows.policy import Policy, read_policy
from flows.sources import find_sources, reach_outside, refresh, sources_digest
from flows.worktree import Overlap, alone, git, inside, prepare
from stages import params
from stages.digest import digest
from stages.errors import QuarryError

JOURNAL = Path(".quarry/retrain/journal.jsonl")  # one line per decision; never read by a stage
MADE_FROM = ("stages", "versions", "params.yaml", "dvc.yaml")  # beside the sources
DAY_SECONDS = 86_400


@flow(
    name="retrain",
    persist_result=False,
    on_failure=[heartbeat.tell],
    on_crashed=[heartbeat.tell],
    on_cancellation=[heartbeat.tell],
)
def retrain(force: bool = False, targets: Sequence[str] = ()) -> State:
    """Bring production up to date, if that is worth it and the gate accepts the outcome.

    Args:
        force: retrain whatever the drift policy says, and what was refused or rolled back.
        targets: build these, as for ``dvc repro``, in place of ``retrain.flow.targets``.
    """
    root = Path.cwd()
    try:
        policy = read_policy()
        with heartbeat.beating(root, str(flow_run.id)), alone(root, "a retraining"):
            return _retrain(root, policy, force, list(targets) or policy.flow.targets)
    except Overlap as e:
        return Failed(name="Busy", message=str(e))
    except QuarryError as e:
        return Failed(message=str(e))


def _retrain(root: Path, policy: Policy, force: bool, targets: Sequence[str]) -> State:
    log = get_run_logger()
    now = promote.current(root)
    sources = find_sources(root, params.entries("ingest"), policy.flow.drop)
    folder = prepare(root, now.version.commit if now else None, keep=list(sources))
    for path, source in sources.items():
        done = refresh(source, folder / path, root=folder)
        log.info("%s: %d copied, %d removed, %d the same", source, *done)
    reach_outside(root, folder, params.entries("ingest"))

    with inside(folder, root):
        damaged = dvc.verify(repair=True, checkouts=[root])
        for entry in damaged:
            log.warning("damaged, removed: %s (of %s)", entry.entry, entry.output)
        status = _status(targets)
        changed = sort_changes(status)
        if now and not any(changed.values()) and not force and not damaged:
            return Completed(name="NothingToDo", message=f"{now.version.name} is up to date")
        inputs = _inputs(folder, sources)
        if not force and (why := _known(root, inputs)):
            return Completed(name="NothingToDo", message=why)

        served = (root / promote.SERVED).resolve()
        if now:
            try:
                promote.serve(root, now.version.commit)
            except QuarryError as e:  # pruned or damaged; the build may make it again
                log.warning("%s", e)
        if first := [name for name in status if name.startswith("ingest@")]:
            state = building.build(first, return_state=True)
            if not state.is_completed():
                end = Cancelled if state.is_cancelled() else Failed
                return end(message=f"the sources were not read: {state.message}")
        catalogue = params.entries("ingest")
        drifts = read_drifts(
            served, folder, catalogue, policy.drift, policy.flow.encoder, params.entries("index")
        )
        days = (time.time() - now.seconds) / DAY_SECONDS if now else None
        verdict = judge(
            policy.drift, drifts, changed, days=days, forced=force, damaged=len(damaged)
        )
        plots = building.plot_images("\n".join(drift_figures(policy.drift, drifts)))
        text = "\n\n".join([reasons.drift_markdown(verdict, drifts), *plots])
        create_markdown_artifact(text, key="drift")
        if verdict.stopped:
            return Failed(name="Stopped", message="\n".join(verdict.stopped))
        if not verdict.worth:
            return Completed(name="NotWorthIt", message=_fired(verdict))

        state = building.build(targets, return_state=True)
        if not state.is_completed():  # of its own: a state belongs to one run
            end = Cancelled if state.is_cancelled() else Failed
            return end(message=state.message)
        if now:
            promote.serve(root, now.version.commit)
        if now and damaged:  # what is served may be the same bytes; they were made again just now
            dvc.checkout(served, relink=True)
        decision = _gate(policy, served if now else None, folder)
    create_markdown_artifact(reasons.decision_markdown(decision), key="gate")
    said = reasons.decision_text(decision)
    if not decision.accepted:
        _note(root, {"inputs": inputs, "outcome": "refused", "reasons": said})
        return Failed(name="Refused", message=said)
    why = _fired(verdict)
    in_place = [path for path, source in sources.items() if source == root / path]
    version = promote.promote(root, folder, why=why, inputs=inputs, sources=in_place)
    _note(root, {"inputs": inputs, "outcome": "promoted", "version": version.name})
    return Completed(name="Promoted", message=f"{version.name}: {why}; {said}")


def _status(targets: Sequence[str]) -> dict[str, list[Any]]:
    """What changed since the promotion; what a refused candidate left behind is no change."""
    status = dvc.status(targets)
    if sort_changes(status)["outputs"]:
        with contextlib.suppress(QuarryError):  # not in the cache: it is made again
            dvc.checkout(Path.cwd())
        status = dvc.status(targets)
    return status


def _inputs(folder: Path, sources: Mapping[str, Path]) -> str:
    """A digest of all that decides the outcome: code, values, sources."""
    index = git(folder, "ls-files", "-s", "--", *MADE_FROM)
    return digest(index, sources_digest([folder / path for path in sources]))


def _known(root: Path, inputs: str) -> str | None:
    """Why the same need not be built again: it was refused, or rolled back."""
    again = "Something else must change first, or: python -m flows.retrain --force"
    if name := promote.rolled_back(root).get(inputs):
        return f"the same made {name}, which was rolled back. {again}"
    last = {line["inputs"]: line for line in journal(root)}.get(inputs)
    if last and last["outcome"] == "refused":
        return f"the same was refused: {last['reasons']}. {again}"
    return None


def journal(root: Path) -> list[dict[str, Any]]:
    """The decisions so far; a line that a crash cut off is left out."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (root / JOURNAL).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def _note(root: Path, what: Mapping[str, str]) -> None:
    path = root / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as f:
        f.write(f"{json.dumps({'at': time.strftime('%F %T'), **what})}\n")
        f.flush()
        os.fsync(f.fileno())


def _fired(verdict: Verdict) -> str:
    """``documents of mine (3 new ...), age``: what was a reason, or all that was looked at.

    Of a first version everything is new: that it is the first says it.
    """
    first = [t for t in verdict.triggers if t.what == "promotion"]
    shown = first or [t for t in verdict.triggers if t.fires] or list(verdict.triggers)
    texts = (f"{t.what}{f' of {t.where}' if t.where else ''} ({t.text})" for t in shown)
    return ", ".join(texts) or "nothing moved"


def _gate(policy: Policy, served: Path | None, folder: Path) -> Decision:
    """The decision on what was built in ``folder``, against what is served, if anything is."""
    evaluations = params.entries("evaluate")
    new = read_evidence(folder, policy.gate, evaluations)
    if served is None:
        return decide(None, new, policy.gate, {})
    old = read_evidence(served, policy.gate, evaluations)
    catalogue = {room: params.entries(room) for room in ("serve", "fuse")}
    calls = {
        name: latency.calls_of(primary.system, catalogue)
        for name, primary in policy.gate.primary.items()
    }
    stages = {
        name: [f"evaluate@{name}", *(f"serve@{call.entry}" for call in of_name)]
        for name, of_name in calls.items()
    }
    same = find_same(served, folder, stages)
    samples = {}
    for name in policy.gate.primary if policy.gate.latency is not None else ():
        if name in same or not {name} <= old.keys() & new.keys():
            continue
        if texts := pick_texts(folder, evaluations[name], policy.flow.questions):
            samples[name] = latency.measure(served, folder, calls[name], texts)
    return decide(old, new, policy.gate, samples, same)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: production is up to date; 1: it is not; 2: no start; 130: cancelled."""
    p = argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.description)
    p.add_argument("targets", nargs="*", help="stages, as for dvc repro")
    p.add_argument("--force", action="store_true", help="whatever the drift policy says")
    args = p.parse_args(argv)
    try:
        read_policy()
        with building.on_server():
            state = retrain(args.force, args.targets, return_state=True)
            APILogHandler().flush()
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{state.name}: {state.message}")
    return 0 if state.is_completed() else 130 if state.is_cancelled() else 1


if __name__ == "__main__":
    sys.exit(main())
