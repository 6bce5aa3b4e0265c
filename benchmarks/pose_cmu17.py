"""PoseLifter on CMU17: a quick start on a CPU, or a stored model, beside what one frame tells.

    STRUCTDIFF_DATA=FOLDER python benchmarks/pose_cmu17.py [--model ddhpose-cmu17] [--kinds gt det]

Without ``--model`` a lifter is fitted to the training clips of every kind of 2D: exact projections
(gt) and simulated detections (det). All 26 test clips x 4 views are lifted and scored; each frame
counts once. Ridge regression and a residual MLP on single frames stand beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from _record import record

from structdiff.pose import PoseDataset, PoseLifter, evaluate, load_cmu17
from structdiff.pose.aggregation import aggregate
from structdiff.pose.baselines import MLPLifter, RidgeLifter
from structdiff.pose.lifted import Lifted
from structdiff.pose.metrics import bone_length_deviation, mpjpe

COLUMNS = ["MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE (mm/s)", "bone length deviation"]
CARD = {"gt": (56.2, 44.8), "det": (71.7, 60.6)}
"""MPJPE of ridge regression and of the MLP on one frame, as the data's README gives them."""


def main() -> None:
    """Fit or load, lift, score and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="score this stored model instead of fitting one")
    parser.add_argument("--kinds", nargs="+", default=["gt", "det"], choices=["gt", "det"])
    parser.add_argument("--steps", type=int, default=PoseLifter().max_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="score every n-th test clip only")
    parser.add_argument("--hypotheses", type=int, nargs="+", default=[5, 20], choices=[5, 20])
    parser.add_argument("--name", help="of the record")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, notes = [], []
    for kind in asked.kinds:
        test = load_cmu17("test", detected=kind == "det")[:: asked.every]
        rows += baselines(kind, test)
        lifter, note = stored(asked) if asked.model else fitted(kind, asked)
        found, more = scores(kind, lifter, test, asked)
        rows += found
        notes += [f"{kind}: {note}", *more]
    suffix = "" if len(asked.kinds) > 1 else f"_{asked.kinds[0]}"
    name = asked.name or f"pose_cmu17{'_shipped' if asked.model else ''}{suffix}"
    what = f"`{asked.model}`" if asked.model else "quick start on a CPU"
    table = pd.DataFrame(rows).round(2).fillna("")
    record(name, f"CMU17, 3D from 2D, {what}", table, "\n".join(f"- {n}" for n in notes))


def baselines(kind: str, test: PoseDataset) -> list[dict[str, Any]]:
    """What one frame tells."""
    train = load_cmu17("train", detected=kind == "det")
    rows = []
    network = MLPLifter(max_steps=4000, random_state=0)
    makers = (("ridge, one frame", RidgeLifter()), ("MLP, one frame", network))
    for (name, model), figure in zip(makers, CARD[kind], strict=True):
        model.fit(train)
        label = f"{name} (data's README: {figure})"
        rows.append(row(kind, label, "", "", model.predict(test), test))
    return rows


def fitted(kind: str, asked: argparse.Namespace) -> tuple[PoseLifter, str]:
    """A lifter fitted within minutes."""
    lifter = PoseLifter(max_steps=asked.steps, random_state=asked.seed, progress=False)
    started = time.process_time()
    lifter.fit(load_cmu17("train", detected=kind == "det"))
    spent = time.process_time() - started
    count = sum(p.numel() for p in lifter.denoiser_.parameters())
    return lifter, (
        f"{count:,} weights (asked <= 350,000), {lifter.training_['steps']} steps and the "
        f"calibration in {spent:.0f} CPU seconds of one thread (asked <= 300)"
    )


def stored(asked: argparse.Namespace) -> tuple[PoseLifter, str]:
    """A published lifter."""
    lifter = PoseLifter.from_pretrained(asked.model).set_params(progress=False)
    count = sum(p.numel() for p in lifter.denoiser_.parameters())
    return lifter, f"{count:,} weights; one model for both kinds of 2D"


def scores(
    kind: str, lifter: PoseLifter, test: PoseDataset, asked: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one kind of 2D, and remarks."""
    rows, notes, seed = [], [], asked.seed
    one = lifted(lifter, test, seed, hypotheses=1, steps=1)
    rows.append(row(kind, "DDHPose", 1, 1, [r.mean for r in one], test))
    plain = [clip_without_camera(clip) for clip in test]
    rows.append(
        row(
            kind,
            "DDHPose, camera not given",
            1,
            1,
            [
                r.mean
                for r in lifted(lifter, PoseDataset(tuple(plain)), seed, hypotheses=1, steps=1)
            ],
            test,
        )
    )
    for count in asked.hypotheses:
        every = {5: 1, 20: 8}[count]
        some = test[::every]
        drawn = lifted(lifter, some, seed, hypotheses=count, steps=5)
        label = f" (one clip in {every})" if every > 1 else ""
        rows.append(row(kind, f"P-Agg{label}", count, 5, [r.mean for r in drawn], some))
        rows += aggregated(kind, lifter, drawn, some, count, label)
        notes.append(f"{kind}, H = {count}, K = 5{label}: {calibration(drawn, some)}")
        if every == 1:
            notes.append(constant(kind, drawn, some, lifter))
    return rows, notes


def lifted(
    lifter: PoseLifter, data: PoseDataset, seed: int, *, hypotheses: int, steps: int
) -> list[Lifted]:
    before = lifter.get_params()
    lifter.set_params(n_hypotheses=hypotheses, steps=steps, sampler="ddpm")
    found: list[Lifted] = lifter.predict(data, seed=seed)
    lifter.set_params(**{k: before[k] for k in ("n_hypotheses", "steps", "sampler")})
    return found


def clip_without_camera(clip: Any) -> Any:
    """The same clip as someone without a calibration has it."""
    from dataclasses import replace

    return replace(clip, camera=None, image_size=clip.image_size, poses=None)


def aggregated(
    kind: str,
    lifter: PoseLifter,
    drawn: Sequence[Lifted],
    test: PoseDataset,
    count: int,
    label: str,
) -> list[dict[str, Any]]:
    """Other ways to one pose: with the root from least squares, as a user has it."""
    ways = {
        "J-Agg, root-free": ("j-agg", lifter.temperature_),
        "J-Agg by argmin (published rule), root-free": ("j-agg", 0.0),
        "RPEA, root-free": ("rpea", None),
    }
    rows = []
    for name, (method, heat) in ways.items():
        poses = [
            aggregate(
                r.hypotheses,
                clip.keypoints,
                method=method,  # type: ignore[arg-type]
                camera=clip.camera,
                temperature=heat,
            ).pose
            for r, clip in zip(drawn, test, strict=True)
        ]
        rows.append(row(kind, f"{name}{label}", count, 5, poses, test))
    hypotheses = [r.hypotheses for r in drawn]
    table = evaluate(hypotheses, test, metrics=["J-Best", "P-Best (pose)", "hypothesis mean"])
    names = {
        "J-Best": "J-Best, oracle",
        "P-Best (pose)": "P-Best per pose, oracle",
        "hypothesis mean": "one hypothesis, on average",
    }
    rows += [
        {
            "2D": kind,
            "method": f"{what}{label}",
            "H": count,
            "K": 5,
            "MPJPE": table.loc["all frames", name],
        }
        for name, what in names.items()
    ]
    return rows


def calibration(drawn: Sequence[Lifted], test: PoseDataset) -> str:
    """How many true coordinates, the root's aside, the 80 % intervals hold."""
    inside, spread = [], []
    for result, clip in zip(drawn, test, strict=True):
        low, high = result.interval(0.8)
        truth = clip.in_camera()
        truth = truth - truth[:, :1]
        held = (truth >= low) & (truth <= high)
        inside.append(held[:, 1:].reshape(-1))
        spread.append(result.std[:, 1:].reshape(-1))
    share, wide = (np.concatenate(v).mean() for v in (inside, spread))
    table = evaluate([r.hypotheses for r in drawn], test, metrics=["energy score", "CRPS"])
    scores = ", ".join(
        f"{k} {v:.1f} mm" for k, v in table.loc["all frames"].items() if k != "frames"
    )
    return (
        f"80 % intervals hold {100 * share:.1f} % of the coordinates (asked 70 to 90); mean "
        f"standard deviation {1000 * wide:.1f} mm; {scores}"
    )


def constant(kind: str, drawn: Sequence[Lifted], test: PoseDataset, lifter: PoseLifter) -> str:
    """What one length per bone and clip costs."""
    from structdiff.pose.kinematics import constant_bones

    skeleton = drawn[0].skeleton
    fixed = [constant_bones(torch.from_numpy(r.mean), skeleton).numpy() for r in drawn]
    free = [r.mean for r in drawn]
    before, after = (
        float(evaluate(p, test, metrics=["MPJPE"]).loc["all frames", "MPJPE"])
        for p in (free, fixed)
    )
    left = max(float(bone_length_deviation(p.astype(np.float64), skeleton)) for p in fixed)
    return (
        f"{kind}: constant bones change MPJPE by {after - before:+.2f} mm (asked <= 1); standard "
        f"deviation of a length over time {left:.1e} mm"
    )


def row(
    kind: str, method: str, count: Any, steps: Any, poses: Sequence[Any], test: PoseDataset
) -> dict[str, Any]:
    """Scores over all frames, the mean of the 9 actions, and the action that training has not."""
    table = evaluate(list(poses), test, metrics=COLUMNS)
    unseen, actions = [], {}
    for pose, clip in zip(poses, test, strict=True):
        errors = mpjpe(pose - pose[:, :1], relative(clip), per="frame")
        actions.setdefault(clip.action, []).append(errors)
        if clip.action == "washwindow":
            unseen.append(errors)
    means = [np.concatenate(v).mean() for v in actions.values()]
    return {
        "2D": kind,
        "method": method,
        "H": count,
        "K": steps,
        **{name: table.loc["all frames", name] for name in COLUMNS},
        "mean of actions": np.mean(means),
        "washwindow (unseen)": np.concatenate(unseen).mean() if unseen else np.nan,
    }


def relative(clip: Any) -> Any:
    """The truth, relative to its root."""
    truth = clip.in_camera()
    return truth - truth[:, :1]


if __name__ == "__main__":
    main()
