"""Which errors are the user's to correct, and the one line that says how.

An error that :func:`explain` does not know is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno

from structdiff.errors import StructDiffError

#: Third-party package -> the extras that install it; the first one where no head was asked for.
EXTRAS = {
    "av": ("pose", "audiovisual"),
    "fcd": ("molecules",),
    "filelock": ("datasets",),
    "gluonts": ("timeseries",),
    "h5py": ("pose",),
    "lightning": ("train", "timeseries", "pose"),
    "matplotlib": ("plots",),
    "mne": ("eeg",),
    "pandas": ("molecules", "timeseries", "pose"),
    "pooch": ("datasets",),
    "pyarrow": ("parquet",),
    "rdkit": ("molecules",),
    "requests": ("datasets",),
    "scipy": ("molecules", "timeseries", "pose"),
    "sklearn": ("molecules", "timeseries", "pose"),
    "sktime": ("sktime",),
    "torchdiffeq": ("dynamics",),
    "torchsde": ("dynamics",),
}
#: Beginnings of the names of a head's modules -> the extra of the head.
_HEADS = {
    "structdiff.molecules": "molecules",
    "structdiff.cli.molecules": "molecules",
    "structdiff.timeseries": "timeseries",
    "structdiff.cli.timeseries": "timeseries",
    "structdiff.cli.series_": "timeseries",
    "structdiff.pose": "pose",
    "structdiff.cli.pose": "pose",
}

_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission; choose a place that you may read and write",
    errno.EPERM: "no permission; choose a place that you may read and write",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "exists already and is not what is needed; choose another name",
    errno.ENOSPC: "no space left on the disk; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can correct; None for a defect of ours."""
    if isinstance(error, StructDiffError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _REASONS:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{_REASONS[error.errno]}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        package = str(error.name).split(".")[0]
        return f"this needs {package}: pip install 'structdiff[{_extra(package, error)}]'"
    return _usage(error)


def _extra(package: str, error: BaseException) -> str:
    """Of the extras with a missing package, that of the head whose code asked for it."""
    known, asked, step = EXTRAS[package], None, error.__traceback__
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        heads = (head for start, head in _HEADS.items() if module.startswith(start))
        asked, step = next(heads, asked), step.tb_next
    return asked if asked in known else known[0]


def help_asked(error: BaseException) -> str | None:
    """The help of a group that was called without a command; None for every other error."""
    if type(error).__name__ != "NoArgsIsHelpError":
        return None
    return str(error.ctx.get_help())  # type: ignore[attr-defined]


def _usage(error: BaseException) -> str | None:
    """A misspelt command or option; typer and click share this error's shape, not its class."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    context = getattr(error, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{' '.join(message().split())}{where}"
