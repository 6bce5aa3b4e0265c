"""Pose models for the command line: loaded, trained, and scored beside what one frame tells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from structdiff.cli.console import say
from structdiff.cli.pose_files import as_options, naming, read_clips, tell
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.pose import PoseDataset, PoseLifter, evaluate, load_cmu17
from structdiff.pose.aggregation import Method
from structdiff.pose.baselines import MLPLifter, RidgeLifter
from structdiff.pose.lifted import Lifted
from structdiff.pose.models import PRESETS
from structdiff.pose.settings import BONES, check_settings, held_out, shortened
from structdiff.pose.skeletons import Skeleton

Settings = Mapping[str, Any]

_CHOICES = {
    "preset": PRESETS,
    "aggregation": get_args(Method),
    "bones": BONES,
    "accelerator": ("auto", "cpu", "gpu"),
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
}
_TEST_SHARE = 0.15
"""Of the frames of one's own files, where no test files are given."""
_SCORES = {
    "frames": "frames",
    "MPJPE": "MPJPE (mm)",
    "P-MPJPE": "P-MPJPE (mm)",
    "MPJVE": "MPJVE (mm/frame)",
    "coverage (80 %)": "in 80 % interval (%)",
}
_PARTS = [column for column in _SCORES if column != "frames"]


def check_choices(**given: str | None) -> None:
    """Before any work: choices are among the known ones."""
    for option, value in given.items():
        if value is not None and value not in _CHOICES[option]:
            raise StructDiffError(f"--{option} {value}: choose of {', '.join(_CHOICES[option])}")


def load_lifter(
    name: str,
    *,
    n_hypotheses: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    aggregation: str | None = None,
    bones: str | None = None,
    accelerator: str = "auto",
    seed: int | None = None,
) -> PoseLifter:
    """A trained model with settings of sampling; wrong ones are refused before any work."""
    check_choices(aggregation=aggregation, bones=bones, accelerator=accelerator)
    model = PoseLifter.from_pretrained(name)
    given = {
        "n_hypotheses": n_hypotheses,
        "sampler": sampler,
        "steps": steps,
        "aggregation": aggregation,
        "bones": bones,
        "accelerator": accelerator,
        "random_state": seed,
    }
    model.set_params(**{k: v for k, v in given.items() if v is not None}, progress=True)
    try:
        check_settings(model)
        model.pose_sampler()
    except CheckpointError:
        raise
    except StructDiffError as error:
        raise StructDiffError(as_options(str(error))) from error
    return model


def skeleton_of(model: PoseLifter) -> Skeleton:
    """Whose joints a fitted model lifts."""
    return Skeleton.from_dict(model.spec_.skeleton)


# ---------------------------------------------------------------- training


def training_clips(
    places: list[str],
    tests: list[str] | None,
    subjects: str | None,
    detected: bool,
    seed: int,
    options: Settings,
) -> tuple[PoseDataset, PoseDataset]:
    """Clips to train on, and to score the model with: the set's own, or motions held out.

    Parameters
    ----------
    places
        ``cmu17``, files with 2D and 3D joints, or folders of these.
    tests
        Files alike to score on.
    subjects
        Whose clips to score on, with commas; without both, motions are held out.
    detected
        2D of cmu17.
    seed
        Which motions.
    options
        What the files do not state, as :func:`read_clips` takes it.
    """
    if tests and subjects:
        raise StructDiffError(f"--test {tests[0]} and --test-subjects {subjects}: give one of them")
    if "cmu17" in places:
        if len(places) > 1 or tests or subjects:
            raise StructDiffError("--data cmu17 has training and test clips: give nothing else")
        return load_cmu17("train", detected=detected), load_cmu17("test", detected=detected)
    data = _joined(places, options)
    if detected:
        raise StructDiffError("--detected is for --data cmu17; leave it out")
    if tests:
        return data, _joined(tests, {**options, "to": data.skeleton})
    if subjects:
        whose = {name.strip() for name in subjects.split(",")}
        kept, others = (
            data.select(lambda clip: clip.subject not in whose),
            data.select(lambda clip: clip.subject in whose),
        )
        if not (len(kept) and len(others)):
            known = ", ".join(sorted({clip.subject or "(none)" for clip in data}))
            raise StructDiffError(
                f"--test-subjects {subjects}: leaves nothing to train on, or to score; the clips "
                f"are of {known}"
            )
        return kept, others
    learnt, test = held_out(data, _TEST_SHARE, seed)
    if not len(test):
        say(
            "no motion is small enough to be held out: the model is not scored; pass --test, or "
            "more clips"
        )
    else:
        say(f"held out for the scores: {', '.join(clip.name for clip in test)}")
    return learnt, test


def _joined(places: list[str], options: Settings) -> PoseDataset:
    """All clips of all files, on one skeleton, with names that tell them apart."""
    files: list[Path] = []
    for place in places:
        folder = Path(place)
        if folder.is_dir():
            found = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in (".npz", ".csv")]
            if not found:
                raise StructDiffError(f"{place}: no .npz or .csv file in this folder")
            files += found
        else:
            files.append(folder)
    parts: list[PoseDataset] = []
    for file in files:
        part = read_clips(str(file), spatial=True, **options)
        lacking = [c.name for c in part if c.keypoints is None or c.poses is None]
        if lacking:
            raise StructDiffError(
                f"{file}: clip {lacking[0]!r} has not both 2D and 3D joints; training needs both"
            )
        if parts and part.skeleton != parts[0].skeleton:
            raise StructDiffError(
                f"{file} is on skeleton {part.skeleton.name}, {files[0]} on "
                f"{parts[0].skeleton.name}: pass --to to convert all files to one"
            )
        tell(part.notes, file)
        parts.append(part)
    clips = [clip for part in parts for clip in part]
    if len({clip.name for clip in clips}) < len(clips):
        clips = [
            replace(clip, name=f"{file.stem}: {clip.name}")
            for file, part in zip(files, parts, strict=True)
            for clip in part
        ]
    return replace(parts[0], clips=tuple(clips))


def new_lifter(
    data: PoseDataset,
    frames: int,
    preset: str | None,
    settings: Settings,
    seed: int,
    accelerator: str,
) -> PoseLifter:
    """A model to train; a setting that is None is the estimator's default."""
    given = {name: value for name, value in settings.items() if value is not None}
    if any(clip.camera is None for clip in data):
        given["turn"] = 0.0  # bodies are turned in front of their camera
    return PoseLifter(
        frames,
        skeleton=data.skeleton,
        preset=preset,
        random_state=seed,
        accelerator=accelerator,
        **given,
    )


def train(
    model: PoseLifter, data: PoseDataset, place: str, out: Path, resume: bool, check: bool
) -> None:
    """Fit a model, and keep it and its checkpoints in ``out``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        with naming(place):
            model.fit(data, out=out, resume=resume, check=check)
    except (KeyboardInterrupt, SystemExit):
        say(f"training stopped; the same command with --resume goes on in {out}")
        raise
    model.save_pretrained(out)
    record = model.training_
    count = sum(p.numel() for p in model.denoiser_.parameters())
    calibrated = f", the spread calibrated on {record['held_out']}" if record["held_out"] else ""
    say(
        f"trained {count:,} weights in {record['steps']:,} steps on {record['windows']:,} windows "
        f"of {model.frames} frames from {record['clips']:,} clips{calibrated}"
    )


def scores_by_action(lifted: Sequence[Lifted], clips: PoseDataset) -> pd.DataFrame:
    """A row per action and one for all frames, of several hypotheses."""
    table = evaluate([each.hypotheses for each in lifted], clips, protocol="h36m", metrics=_PARTS)
    return _named(table.drop(index="mean")).rename_axis("action")


def scores_beside_baselines(
    model: PoseLifter, learnt: PoseDataset, test: PoseDataset, frames: int, seed: int
) -> pd.DataFrame:
    """A row for the model and for the regressions of one frame; each test frame counts once.

    Parameters
    ----------
    model
        Fitted.
    learnt
        What it was trained on; the regressions are fitted to it as well.
    test
        Scored.
    frames
        Of the test clips' beginnings, about; 0 is all of them.
    seed
        Of the noise.
    """
    if frames and test.frames > frames:
        test = shortened(test, frames, int(model.frames))
        say(f"scored on the beginnings of all {len(test)} test clips, {test.frames:,} frames")
    name = f"DDHPose, H = {model.n_hypotheses}"
    rows = {name: model.evaluate(test, seed=seed).loc["all frames"]}
    for label, baseline in (("ridge, one frame", RidgeLifter()), ("MLP, one frame", MLPLifter())):
        predicted = baseline.fit(learnt).predict(test)
        rows[label] = evaluate(predicted, test).loc["all frames"]
    return _named(pd.DataFrame(rows).T).rename_axis("method")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """In the order and with the units of a screen."""
    return table[[column for column in _SCORES if column in table]].rename(columns=_SCORES)
