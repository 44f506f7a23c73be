"""Tell benign from malignant tumours: cross-validate, train with early stopping, register, load back, compare.

Run it twice: the second time, the comparison has something to compare. Everything lands in
``mlflow.db`` in the working directory; look at it with ``mlflow ui``.
"""

from __future__ import annotations

import mlflow
import xgboost as xgb
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.xgboost import MLflowCallback


def main() -> None:
    """Train, register, reload, compare."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X_train, X_valid, y_train, y_valid = train_test_split(X, y, test_size=0.3, random_state=7, stratify=y)
    train, valid = xgb.QuantileDMatrix(X_train, y_train), xgb.DMatrix(X_valid, y_valid)
    params = {"objective": "binary:logistic", "eval_metric": ["auc", "logloss"], "eta": 0.3, "max_depth": 3}

    names = {"experiment_name": "breast-cancer", "model_name": "breast-cancer"}
    config = MLflowConfig(**names, register_model=True, model_alias="champion")
    folds = MLflowCallback(config, run_name="five folds")
    xgb.cv(params, xgb.DMatrix(X_train, y_train), 30, nfold=5, stratified=True, callbacks=[folds])

    callback = MLflowCallback(config)
    booster = xgb.train(
        params,
        train,
        num_boost_round=200,
        evals=[(train, "train"), (valid, "valid")],
        early_stopping_rounds=10,
        verbose_eval=False,
        callbacks=[callback],
    )
    print(f"recorded as run {callback.run_id}, registered as version {callback.model_version}")

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    champion = mlflow.pyfunc.load_model("models:/breast-cancer@champion")
    right = int(((champion.predict(X_valid) > 0.5) == y_valid).sum())
    print(
        f"models:/breast-cancer@champion, cut after round {booster.best_iteration}, knows {right} of {len(y_valid)}"
    )

    tracker = MLflowTracker(config)
    table = tracker.compare_runs([run.run_id for run in tracker.search_runs(max_results=4)])
    columns = ["run_name", "status", "best_test-auc-mean", "best_valid-auc", "best_valid-logloss"]
    print(table[columns].to_string())


if __name__ == "__main__":
    main()
