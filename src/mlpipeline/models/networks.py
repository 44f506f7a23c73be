"""A neural network for tables, trained by Lightning, with scikit-learn's interface.

::

    MLPClassifier(…).fit(X, y, X_val, y_val) ─► Lightning's Trainer, early stopping, the best epoch's weights
                     predict(X)              ─► torch alone

Models saved with it bring these classes along (`mlpipeline.sklearn.flavor`): whoever loads one needs
torch, and neither this package nor Lightning.
"""

from __future__ import annotations

import copy
import signal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    import torch
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
except ImportError as error:
    from mlpipeline.core.errors import MissingExtraError

    raise MissingExtraError("torch" if error.name == "torch" else "sklearn", error.name or "torch") from error


class _MLP(BaseEstimator):
    """What both have in common.

    Args:
        hidden_sizes: Width of each hidden layer.
        dropout: Share of a layer's outputs that training leaves out.
        learning_rate: Adam's.
        weight_decay: AdamW's.
        batch_size: Rows of a step.
        max_epochs: Epochs at most.
        patience: Epochs without a better validation loss after which training stops.
        validation_fraction: Share of the rows that is held back where `fit` is given no validation rows.
        accelerator: Lightning's: ``auto`` takes a GPU where there is one.
        random_state: Seed of the weights, the order of rows and what is held back.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 64,
        max_epochs: int = 100,
        patience: int = 10,
        validation_fraction: float = 0.1,
        accelerator: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.hidden_sizes = hidden_sizes
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.accelerator = accelerator
        self.random_state = random_state

    def _fit(self, X: Any, targets: Any, outputs: int, validation: Any, callbacks: Sequence[Any]) -> None:
        from sklearn.model_selection import train_test_split

        features = _floats(X)
        self.n_features_in_ = features.shape[1]
        if validation is None:
            features, X_val, targets, y_val = train_test_split(
                features, targets, test_size=self.validation_fraction, random_state=self.random_state
            )
            validation = (X_val, y_val)
        with torch.random.fork_rng():  # the user's random numbers go on as if nothing had been
            torch.manual_seed(self.random_state)
            sizes = [self.n_features_in_, *self.hidden_sizes]
            layers: list[Any] = []
            for size, following in pairwise(sizes):
                layers += [torch.nn.Linear(size, following), torch.nn.ReLU(), torch.nn.Dropout(self.dropout)]
            self.module_ = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], outputs))
            _train(
                self.module_,
                (features, targets),
                (_floats(validation[0]), validation[1]),
                callbacks,
                {name: value for name, value in self.get_params().items() if name in _OF_TRAINING},
            )

    def _outputs(self, X: Any) -> Any:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "module_")
        features = _floats(X)
        with torch.no_grad():
            return self.module_(torch.from_numpy(features)).numpy()


class MLPClassifier(ClassifierMixin, _MLP):
    """Predicts one of several classes, which may be anything."""

    def fit(
        self, X: Any, y: Any, X_val: Any = None, y_val: Any = None, callbacks: Sequence[Any] = ()
    ) -> MLPClassifier:
        """Train.

        Args:
            X: Features.
            y: Classes.
            X_val: Features by which training stops; None holds rows back.
            y_val: Their classes.
            callbacks: Lightning callbacks.
        """
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        validation = None
        if X_val is not None:
            known = np.isin(np.asarray(y_val), self.classes_)
            found = np.searchsorted(self.classes_, np.asarray(y_val)[known])
            validation = (_floats(X_val)[known], found.astype(np.int64))
        self._fit(X, numbers.astype(np.int64), len(self.classes_), validation, callbacks)
        return self

    def predict_proba(self, X: Any) -> Any:
        """Return a probability per row and class."""
        return torch.softmax(torch.from_numpy(self._outputs(X)), dim=1).numpy()

    def predict(self, X: Any) -> Any:
        """Return the likeliest class of each row."""
        return self.classes_[self._outputs(X).argmax(axis=1)]


class MLPRegressor(RegressorMixin, _MLP):
    """Predicts a number; the target is scaled for the training, and back."""

    def fit(
        self, X: Any, y: Any, X_val: Any = None, y_val: Any = None, callbacks: Sequence[Any] = ()
    ) -> MLPRegressor:
        """Train; the arguments are those of `MLPClassifier.fit`, with numbers for classes."""
        target = np.asarray(y, dtype=np.float64)
        self.mean_, self.scale_ = float(target.mean()), float(target.std()) or 1.0

        def scaled(values: Any) -> Any:
            return ((np.asarray(values, dtype=np.float64) - self.mean_) / self.scale_).astype(np.float32)

        validation = (X_val, scaled(y_val)) if X_val is not None else None
        self._fit(X, scaled(target), 1, validation, callbacks)
        return self

    def predict(self, X: Any) -> Any:
        """Return the number predicted for each row."""
        return self._outputs(X)[:, 0].astype(np.float64) * self.scale_ + self.mean_


_OF_TRAINING = ("learning_rate", "weight_decay", "batch_size", "max_epochs", "patience", "accelerator")


def _floats(X: Any) -> Any:
    return np.ascontiguousarray(np.asarray(X), dtype=np.float32)


def _train(
    module: Any, train: Any, validation: Any, callbacks: Sequence[Any], options: dict[str, Any]
) -> None:
    """Train a module in place, and leave it with the weights of its best epoch, on the CPU."""
    # All of it here, so that a loaded model does without.
    try:
        import lightning
        from lightning.pytorch.callbacks import Callback, EarlyStopping
    except ImportError as error:
        from mlpipeline.core.errors import MissingExtraError

        raise MissingExtraError("lightning", "lightning") from error
    from torch.utils.data import DataLoader, TensorDataset

    is_classifier = train[1].dtype.kind == "i"

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters(options)
            self.module = module

        def _loss(self, batch: Any) -> tuple[Any, Any, Any]:
            found = self.module(batch[0])
            if is_classifier:
                return torch.nn.functional.cross_entropy(found, batch[1]), found, batch[1]
            return torch.nn.functional.mse_loss(found[:, 0], batch[1]), found, batch[1]

        def training_step(self, batch: Any, index: int) -> Any:
            loss, _, _ = self._loss(batch)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            loss, found, targets = self._loss(batch)
            self.log("val_loss", loss)
            if is_classifier:
                self.log("val_accuracy", (found.argmax(dim=1) == targets).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(
                self.parameters(), lr=options["learning_rate"], weight_decay=options["weight_decay"]
            )

    class Best(Callback):
        loss = float("inf")
        weights: Any = None

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            loss = float(trainer.callback_metrics.get("val_loss", float("inf")))
            if not trainer.sanity_checking and loss < self.loss:
                self.loss, self.weights = loss, copy.deepcopy(module.state_dict())

    def rows(part: Any, *, is_shuffled: bool) -> Any:
        tensors = TensorDataset(*map(torch.from_numpy, part))
        return DataLoader(tensors, batch_size=options["batch_size"], shuffle=is_shuffled)

    best = Best()
    trainer = lightning.Trainer(
        max_epochs=options["max_epochs"],
        accelerator=options["accelerator"],
        devices=1,
        callbacks=[best, EarlyStopping("val_loss", patience=options["patience"]), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(Task(), rows(train, is_shuffled=True), rows(validation, is_shuffled=False))
    except SystemExit as left:
        if not isinstance(left.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)  # Lightning exits after Ctrl-C, and ignores the next one
        raise KeyboardInterrupt from left
    if best.weights is not None:
        module.load_state_dict(best.weights)
    module.cpu().eval()
