"""Directions that metrics' names tell, as frameworks and people write them."""

from __future__ import annotations

import pytest

from mlpipeline.tracking.directions import is_greater_better


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", True),
        ("val_f1", True),
        ("test/Accuracy", True),
        ("validation_0-auc", True),
        ("eval-ndcg@3", True),
        ("valAccuracy", True),
        ("mAP50", True),
        ("top5_acc", True),
        ("training_f1_score", True),
        ("d2_log_loss_score", True),
        ("neg_log_loss", True),
        ("neg_negative_likelihood_ratio", True),
        ("score", True),
        ("loss", False),
        ("val_loss", False),
        ("loss1", False),
        ("eval-rmse", False),
        ("test-mlogloss", False),
        ("accuracy_loss", False),
        ("brier_score", False),
        ("neg_log_likelihood", False),
        ("word_error_rate", False),
        ("pre@3", True),
        ("eval-pre@3-", True),
        ("eval-pre__at__3", True),
        ("test-pre-mean", True),
        ("valid-quantile", False),
        ("test-expectile-mean", False),
        ("pre_activation", None),
        ("quantile_90", None),
        ("test-auc-std", None),
        ("std_test_score", None),
        ("learning_rate", None),
        ("epoch", None),
        ("lr", None),
        ("my_metric", None),
        ("closest", None),
        ("", None),
    ],
)
def test_a_name_tells_the_direction_or_nothing(name, expected):
    """Whole words count, the last one decides, and neg turns it round."""
    assert expected is is_greater_better(name)
