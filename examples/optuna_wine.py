"""Search a classifier of scikit-learn's wine data with Optuna, keep the best one's model, load it back.

Everything lands in ``mlflow.db`` in the working directory; look at it with ``mlflow ui``. Run it twice:
the study is stored in ``optuna.db``, and the second search continues the first one's run.
"""

from __future__ import annotations

import optuna
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score, train_test_split

from mlpipeline import MLflowTracker
from mlpipeline.optuna import MLflowCallback


def main() -> None:
    """Search, register, reload, compare."""
    data = load_wine(as_frame=True)
    train, test, train_kinds, test_kinds = train_test_split(data.data, data.target, random_state=7)
    callback = MLflowCallback(
        {"tracking_uri": "sqlite:///mlflow.db", "register_model": True, "model_name": "wine-search"},
        metric_name="accuracy",
    )

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        forest = RandomForestClassifier(
            n_estimators=trial.suggest_int("n_estimators", 5, 50, log=True),
            max_depth=trial.suggest_int("max_depth", 1, 8),
            max_features=trial.suggest_float("max_features", 0.1, 1.0),
            random_state=7,
        )
        accuracy = float(cross_val_score(forest, train, train_kinds, cv=4).mean())
        run = callback.run_for(trial)
        run.log_metrics({"test_accuracy": forest.fit(train, train_kinds).score(test, test_kinds)}, step=0)
        run.log_model(forest, input_example=train)  # delivered only if no trial was better
        return accuracy

    study = optuna.create_study(
        study_name="wine-search",
        storage="sqlite:///optuna.db",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=7),
    )
    study.optimize(objective, n_trials=20, n_jobs=2, callbacks=[callback])

    tracker = MLflowTracker(tracking_uri="sqlite:///mlflow.db", experiment_name="wine-search")
    run = tracker.get_run_info(callback.run_id)
    print(f"trial {run.tags['best_trial']} of {len(study.trials)} is the best: {study.best_value:.3f}")
    print(
        f"version {callback.model_version} knows {callback.load_model().score(test, test_kinds):.0%} of the rest"
    )
    best = tracker.search_runs("metrics.accuracy > 0", order_by=["metrics.accuracy DESC"], max_results=5)
    print(
        tracker.compare_runs([run.run_id for run in best])[
            ["run_name", "accuracy", "test_accuracy"]
        ].to_string()
    )


if __name__ == "__main__":
    main()
