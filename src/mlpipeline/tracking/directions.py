"""Whether more of a metric is better, as far as its name says so.

::

    val_f1, test/accuracy, validation_0-auc     True
    val_loss, eval-rmse, brier_score            False
    neg_log_loss                                True     "neg" turns it round
    eval-pre@3, test-quantile-mean              True, False: XGBoost's, at the end only
    learning_rate, epoch, my_metric             None
    test-auc-std                                None: a spread

The word that stands last decides: ``accuracy_loss`` is a loss. "score" decides only where no other word
does: ``brier_score`` is an error.
"""

from __future__ import annotations

import re

from mlpipeline.tracking import names

_GREATER = frozenset(
    (
        *("accuracy", "acc", "f1", "fbeta", "precision", "recall", "sensitivity", "specificity"),
        *("auc", "auroc", "auprc", "aucpr", "roc", "ap", "map", "ndcg", "mrr", "hits", "lift", "gain"),
        *("r2", "variance", "iou", "dice", "jaccard", "kappa", "mcc", "corrcoef", "correlation"),
        *("likelihood", "loglik", "bleu", "rouge", "meteor", "psnr", "ssim", "reward", "silhouette", "gini"),
        *("pearson", "spearman"),
    )
)
_SMALLER = frozenset(
    (
        *("loss", "logloss", "mlogloss", "entropy", "crossentropy", "nll", "nloglik", "hinge", "kl"),
        *("error", "errors", "merror", "mse", "rmse", "mae", "mape", "smape", "msle", "rmsle", "mphe"),
        *("wer", "cer", "eer", "fpr", "fnr", "brier", "deviance", "perplexity", "ppl", "fid", "latency"),
    )
)
# XGBoost's own, of words that mean something else at other places.
_LAST = re.compile(r"\b(?:(pre)|quantile|expectile)(?:@[0-9.]+)?-?\Z")
_NEGATIVE = frozenset(("neg", "negative"))


def is_greater_better(name: str) -> bool | None:
    """Tell from a metric's name whether a greater value is a better one; None where it does not say.

    Args:
        name: As it was logged, with whatever stands around it, such as ``val_`` or ``@3``.
    """
    plainly = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names.original_name(name)).lower().removesuffix("-mean")
    words = re.findall(r"[a-z]+[0-9]*", plainly)
    plain = [word if word in _GREATER else word.rstrip("0123456789") for word in words]  # top5, mAP50
    telling = [word in _GREATER for word in plain if word in _GREATER or word in _SMALLER]
    if "std" in words:
        return None
    if "d2" in words:  # scikit-learn's shares of an error that are explained
        is_greater = True
    elif telling:
        is_greater = telling[-1]
    elif last := _LAST.search(plainly):
        is_greater = last[1] is not None
    elif "score" in words:
        is_greater = True
    else:
        return None
    return is_greater ^ (sum(word in _NEGATIVE for word in words) % 2 == 1)
