"""``structdiff pose``: lift, evaluate, train, demo, info."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from structdiff.cli.console import print_json, report, say
from structdiff.cli.numbers import check_positive, check_rates
from structdiff.cli.pose_options import (
    Accelerator,
    Check,
    Clip,
    Detected,
    Fps,
    Hypotheses,
    ImageSize,
    Json,
    Model,
    SamplerName,
    Seed,
    SkeletonName,
    Steps,
)
from structdiff.errors import StructDiffError

app = typer.Typer(
    help="3D human poses: lift them from 2D keypoints, and score them.", no_args_is_help=True
)

DEMO_MODEL, DEMO_CLIPS, _DEMO_SHOWN = "ddhpose-cmu17", "cmu17_demo", "walking_01/2"


@app.command()
def lift(
    keypoints: Annotated[
        str,
        typer.Argument(
            help="JSON of COCO, MMPose or AlphaPose, npz, csv, mat; or cmu17, cmu17_demo."
        ),
    ],
    model: Model = DEMO_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="npz (everything) or csv.")] = Path(
        "poses.npz"
    ),
    video: Annotated[Path | None, typer.Option(help="Film of the lifted clip (.mp4 .gif).")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of four moments (.png .svg .pdf).")
    ] = None,
    clip: Clip = None,
    camera: Annotated[
        str | None,
        typer.Option(help="Calibration as JSON, FILE or FILE:NUMBER; gives world coordinates."),
    ] = None,
    image_size: ImageSize = None,
    skeleton: SkeletonName = None,
    person: Annotated[
        str | None, typer.Option(help="Track of a detector's file; the surest by default.")
    ] = None,
    fps: Fps = None,
    detected: Detected = False,
    hypotheses: Hypotheses = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    aggregation: Annotated[
        str | None,
        typer.Option(help="p-agg, j-agg, softmax, rpea, pose-softmax or median."),
    ] = None,
    bones: Annotated[str | None, typer.Option(help="free, or constant over the clip.")] = None,
    seed: Seed = None,
    accelerator: Accelerator = "auto",
    check: Check = True,
    json: Json = False,
) -> None:
    """Lift 2D keypoints to 3D poses with their uncertainty."""
    from structdiff.cli import pose_files as files
    from structdiff.cli import pose_models as models
    from structdiff.cli import pose_results as results

    check_positive(hypotheses=hypotheses, steps=steps)
    check_rates(fps=fps)
    size = files.image_size_of(image_size)
    files.check_skeleton(skeleton=skeleton)
    files.check_output(out, files.POSES)
    files.check_output(video, files.FILMS)
    files.check_output(plot, files.PICTURES)
    lifter = models.load_lifter(
        model,
        n_hypotheses=hypotheses,
        sampler=sampler,
        steps=steps,
        aggregation=aggregation,
        bones=bones,
        accelerator=accelerator,
        seed=seed,
    )
    data = files.read_clips(
        keypoints,
        detected=detected,
        layout=skeleton,
        to=models.skeleton_of(lifter),
        image_size=size,
        fps=fps,
        person=person,
        check=check,
    )
    files.tell(data.notes, keypoints)
    data = files.with_camera(files.chosen(data, clip, keypoints), camera)
    pictured = video or plot
    if pictured is not None and len(data) > 1:
        names = ", ".join(each.name for each in data[:5])
        raise StructDiffError(
            f"{pictured} shows one clip, {keypoints} holds {len(data)} ({names}"
            f"{', ...' if len(data) > 5 else ''}): choose one with --clip"
        )
    started = time.monotonic()
    with files.naming(keypoints):
        lifted = lifter.predict(data, check=False)  # the reader has checked them
    seconds = time.monotonic() - started
    results.write_lifted(lifted, out)
    if plot is not None:
        results.write_picture(results.moments(lifted[0]), plot)
    if video is not None:
        with files.naming(keypoints):
            lifted[0].animate(video)
    if any(each.camera_assumed and each.root is not None for each in lifted):
        say(
            "no --camera: distances from the camera rest on a guessed focal length; the poses "
            "themselves do not"
        )
    facts = results.summary(lifted)
    facts |= {"seconds": seconds, "out": str(out)}
    facts |= {k: str(v) for k, v in (("plot", plot), ("video", video)) if v is not None}
    report(f"{keypoints}: lifted", facts, json)


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="npz or csv with 3D poses.")],
    target: Annotated[
        str,
        typer.Argument(
            help="True poses: npz, csv, mat, 2D.npz+3D.npz+cameras.json; or cmu17, cmu17_demo."
        ),
    ],
    protocol: Annotated[
        str | None,
        typer.Option(help="h36m: a row per action; 3dhp: per sequence; a row per clip without."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The whole table as CSV, with units.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Error of every joint (.png .svg .pdf).")
    ] = None,
    clip: Clip = None,
    to: Annotated[str | None, typer.Option(help="Skeleton that both are converted to.")] = None,
    skeleton: SkeletonName = None,
    unit: Annotated[str | None, typer.Option(help="m or mm, if not stated.")] = None,
    axes: Annotated[str | None, typer.Option(help="camera or world, if not stated.")] = None,
    target_skeleton: Annotated[str | None, typer.Option(help="The same of the target.")] = None,
    target_unit: Annotated[str | None, typer.Option(help="The same of the target.")] = None,
    target_axes: Annotated[str | None, typer.Option(help="The same of the target.")] = None,
    fps: Fps = None,
    check: Check = True,
    json: Json = False,
) -> None:
    """Score 3D poses with every metric of the field, each frame once."""
    from structdiff.cli import pose_files as files
    from structdiff.cli import pose_pairs as pairing
    from structdiff.cli import pose_results as results
    from structdiff.cli import pose_scores as scores
    from structdiff.pose.evaluation import evaluate as score
    from structdiff.pose.protocols import PROTOCOLS
    from structdiff.pose.skeletons import get_skeleton

    if protocol is not None and protocol not in PROTOCOLS:
        raise StructDiffError(f"--protocol {protocol}: choose of {', '.join(PROTOCOLS)}")
    check_rates(fps=fps)
    files.check_skeleton(skeleton=skeleton, target_skeleton=target_skeleton, to=to)
    files.check_stated(unit=unit, axes=axes, target_unit=target_unit, target_axes=target_axes)
    files.check_output(out, (".csv",))
    files.check_output(plot, files.PICTURES)
    common: dict[str, Any] = {"to": None if to is None else get_skeleton(to), "fps": fps}
    guess = files.read_clips(
        str(prediction), spatial=True, layout=skeleton, unit=unit, axes=axes, check=False, **common
    )
    truth = files.read_clips(
        target,
        spatial=True,
        layout=target_skeleton,
        unit=target_unit,
        axes=target_axes,
        check=check,
        prefix="target-",
        **common,
    )
    with files.naming(f"{prediction} against {target}"):
        drawn = files.hypotheses_of(prediction, guess.skeleton, to)
        pairs = pairing.paired(guess, drawn, truth, clip)
        if check:
            pairing.check_predicted(guess, pairs)
        table = score(pairs.predictions, pairs.targets, protocol=protocol)
    files.tell(pairs.notes, f"{prediction} against {target}")
    if out is not None:
        scores.write_scores(scores.with_units(table), out)
    if plot is not None:
        results.write_picture(scores.error_picture(pairs), plot)
    scores.print_evaluation(f"{prediction} against {target}", table, json)


@app.command()
def train(
    data: Annotated[
        list[str],
        typer.Option(help="cmu17, a file with 2D and 3D joints, or a folder; may be repeated."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trained model.")],
    test: Annotated[
        list[str] | None,
        typer.Option(help="Files to score on; otherwise some motions are held out."),
    ] = None,
    test_subjects: Annotated[
        str | None, typer.Option(help="Whose clips to score on, as S9,S11.")
    ] = None,
    detected: Detected = False,
    frames: Annotated[int, typer.Option(help="Frames that the network sees at once.")] = 27,
    preset: Annotated[str | None, typer.Option(help="paper: as DDHPose was published.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps; 5,000 by default.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop training after so many minutes.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows at a time.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the transformer.")] = None,
    depth: Annotated[int | None, typer.Option(help="Layers of the transformer.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    to: Annotated[str | None, typer.Option(help="Skeleton to convert the files to.")] = None,
    test_frames: Annotated[
        int, typer.Option(help="Frames to score on, about; 0 is all of them.")
    ] = 5000,
    seed: Annotated[int, typer.Option(help="Seeds weights, noise and data order.")] = 0,
    accelerator: Accelerator = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where training stopped.")] = False,
    check: Check = True,
    json: Json = False,
) -> None:
    """Train a model, and score it beside what a regression of one frame reaches."""
    from structdiff.cli import pose_files as files
    from structdiff.cli import pose_models as models
    from structdiff.cli import pose_scores as scores
    from structdiff.pose.skeletons import get_skeleton

    settings = {
        "max_steps": max_steps,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "width": width,
        "depth": depth,
        "precision": precision,
        "checkpoint_every": checkpoint_every,
    }
    check_positive(
        frames=frames,
        max_steps=max_steps,
        batch_size=batch_size,
        width=width,
        depth=depth,
        checkpoint_every=checkpoint_every,
    )
    check_rates(max_minutes=max_minutes, learning_rate=learning_rate)
    models.check_choices(preset=preset, precision=precision, accelerator=accelerator)
    files.check_skeleton(to=to)
    if out.is_file():
        raise StructDiffError(f"{out}: is a file; give the name of a folder for the model")
    if test_frames < 0:
        raise StructDiffError(f"--test-frames {test_frames}: should be 0 or more")
    options = {"to": None if to is None else get_skeleton(to), "check": check}
    learnt, scored = models.training_clips(data, test, test_subjects, detected, seed, options)
    lifter = models.new_lifter(learnt, frames, preset, settings, seed, accelerator)
    models.train(lifter, learnt, ", ".join(data), out, resume, check)
    table = None
    if len(scored):
        table = models.scores_beside_baselines(lifter, learnt, scored, test_frames, seed)
        scores.write_scores(table, out / "scores.csv")
    say(f"lift with `structdiff pose lift KEYPOINTS --model {out}`")
    if json:
        print_json({"model": out, "scores": {} if table is None else table.to_dict("index")})
        return
    if table is not None:
        scores.print_scores(f"{', '.join(data)}: clips that training did not see", table)
    print(out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The lifted poses.")] = Path(
        "demo_poses.npz"
    ),
    plot: Annotated[Path, typer.Option(help="The picture.")] = Path("demo_poses.png"),
    video: Annotated[Path, typer.Option(help="The film.")] = Path("demo_poses.mp4"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same poses.")] = 0,
    json: Json = False,
) -> None:
    """Lift the embedded clips, a walk and jumps, with the embedded model, at once."""
    from structdiff.cli import pose_files as files
    from structdiff.cli import pose_models as models
    from structdiff.cli import pose_results as results
    from structdiff.cli import pose_scores as scores

    files.check_output(out, files.POSES)
    files.check_output(plot, files.PICTURES)
    files.check_output(video, files.FILMS)
    lifter = models.load_lifter(DEMO_MODEL, seed=seed)
    clips = files.read_clips(DEMO_CLIPS, detected=True)
    lifted = lifter.predict(clips)
    table = models.scores_by_action(lifted, clips)
    results.write_lifted(lifted, out)
    (shown,) = (each for each in lifted if each.clip.name == _DEMO_SHOWN)
    target = results.relative(clips[_DEMO_SHOWN], shown.skeleton)
    results.write_picture(results.moments(shown, target=target), plot)
    shown.animate(video, target=target)
    if json:
        print_json(table.to_dict("index"))
    else:
        scores.print_scores(
            "two motions that the model has not seen, from noisy keypoints of 4 cameras", table
        )
    say(f"written: {out}, {plot}, {video}")


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Name or folder of a model; all by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Describe a model, or list the embedded ones."""
    from structdiff.cli.info import show_models
    from structdiff.storage import POSE

    show_models(model, POSE, "structdiff pose train --out", json)
