"""What the estimators of all heads share: they are saved, published and loaded alike.

A head's estimator inherits :class:`SavedEstimator` beside scikit-learn's ``BaseEstimator`` and says
what it is made of; files, checks and messages are those of :mod:`structdiff.storage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from structdiff.storage import (
    CONFIG,
    WEIGHTS,
    ModelFormat,
    check_fitted,
    check_weights,
    find_model,
    naming_damage,
    push_model,
    read_config,
    read_weights,
    restored_estimator,
    write_model,
)

if TYPE_CHECKING:
    from structdiff.denoisers import Denoiser

_S = TypeVar("_S", bound="SavedEstimator")


@dataclass(frozen=True)
class Contents:
    """What a fitted estimator consists of, besides its parameters and the record of its training.

    Parameters
    ----------
    config
        Further parts of ``config.json``.
    weights
        State of the network, stored in the type that the caller chooses.
    exact
        Tensors that keep their own type, by names that no weight has.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    exact: Mapping[str, Tensor] = field(default_factory=dict)


class SavedEstimator(ABC):
    """``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` of a head's estimator.

    A head sets two class attributes and defines four methods:

    ``_FORMAT``
        The :class:`~structdiff.storage.ModelFormat` of its files.
    ``_PARTS``
        Names in ``config.json`` without which there is no model, besides ``parameters``.
    ``_contents``
        Taken apart for saving.
    ``_describe``, ``_expected``, ``_assemble``
        Put together again, in this order: what the config says, the tensors that it makes one
        expect, and the model itself once names, shapes and numbers of the tensors were checked.
        So a damaged config takes no memory. What they raise is reported as the file's damage.
    """

    _FORMAT: ClassVar[ModelFormat]
    _PARTS: ClassVar[tuple[str, ...]]

    denoiser_: Denoiser
    training_: dict[str, Any]

    if TYPE_CHECKING:  # scikit-learn's BaseEstimator brings them

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...

        def set_params(self, **parameters: Any) -> Any: ...

    # --- what a head defines -----------------------------------------------------------------
    @abstractmethod
    def _contents(self) -> Contents:
        """What the fitted estimator consists of."""

    @abstractmethod
    def _describe(self, config: Mapping[str, Any]) -> None:
        """Set the fitted attributes that ``config.json`` holds; damage raises ValueError."""

    @abstractmethod
    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names and shapes, on the meta device, that the described model's tensors must have.

        Parameters
        ----------
        tensors
            Those of the file, unchecked: for sizes that the config does not know.
        """

    @abstractmethod
    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        """Build ``denoiser_`` and set the attributes that the checked tensors hold."""

    def _parameters(self) -> dict[str, Any]:
        """The parameters to be stored."""
        return self.get_params()

    # --- what an estimator gets --------------------------------------------------------------
    def save_pretrained(self, folder: str | Path, *, dtype: str = "float32") -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``.

        Each file appears whole or not at all.

        Parameters
        ----------
        folder
            Made if it does not exist.
        dtype
            Of the stored weights: ``"float32"``, or ``"float16"`` at half the size.

        Raises
        ------
        StructDiffError
            If the estimator is not fitted, or something of it cannot be stored.
        """
        check_fitted(self)
        contents = self._contents()
        config = {
            "format": self._FORMAT.name,
            "parameters": self._parameters(),
            **contents.config,
            "training": getattr(self, "training_", {}),
        }
        return write_model(Path(folder), config, contents.weights, dtype, contents.exact)

    def push_to_hub(
        self,
        repository: str,
        *,
        dtype: str = "float32",
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload to the Hugging Face hub, for :meth:`from_pretrained`; the commit's address.

        Parameters
        ----------
        repository
            ``"owner/name"``; made if it does not exist.
        dtype
            As for :meth:`save_pretrained`.
        private
            Whether a new repository is private.
        token
            Of the hub; by default the one of ``hf auth login``.
        """

        def save(folder: Path) -> Path:
            return self.save_pretrained(folder, dtype=dtype)

        return push_model(save, repository, self._FORMAT, private, token)

    @classmethod
    def from_pretrained(
        cls: type[_S], name: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> _S:
        """Load an embedded model by name, a folder, or a Hugging Face repository.

        The loaded model has the saved parameters, but no training data, no ``random_state``
        (unseeded calls draw anew; the training's seed stands in ``training_``) and the accelerator
        "auto".

        Parameters
        ----------
        name
            Of the model, folder, or repository ``"owner/name"``.
        revision, token
            Of the repository: a branch, tag or commit, and the hub's token where it is private.

        Raises
        ------
        CheckpointError
            If the files are missing, truncated, of another model, or hold NaN.
        """
        folder = find_model(name, cls._FORMAT, revision, token)
        described, weights = folder / CONFIG, folder / WEIGHTS
        config = read_config(described, cls._FORMAT, ("parameters", *cls._PARTS))
        tensors = read_weights(weights)
        model = restored_estimator(cls, config["parameters"], described)
        with naming_damage(described):
            model._describe(config)
            model.training_ = dict(config.get("training", {}))
            check_weights(tensors, model._expected(tensors), weights)
            model._assemble(tensors)
        model.denoiser_.eval()
        return model
