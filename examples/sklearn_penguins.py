"""Tell the sex of a penguin from columns of mixed types with gaps: search, evaluate, register, reload.

Everything lands in ``mlflow.db`` in the working directory; look at it with ``mlflow ui``.
"""

from __future__ import annotations

import mlflow
from palmerpenguins import load_penguins
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from mlpipeline.sklearn import MLflowEstimator


def main() -> None:
    """Search, evaluate, reload."""
    penguins = load_penguins().dropna(subset=["sex"]).drop(columns="year")
    X, sex = penguins.drop(columns="sex"), penguins["sex"].to_numpy()
    X.loc[X.index[::25], "body_mass_g"] = None  # a scale that fails now and then
    X_train, X_test, y_train, y_test = train_test_split(X, sex, random_state=7)

    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["species", "island"]),
        (SimpleImputer(), make_column_selector(dtype_include="number")),
    )
    pipeline = Pipeline([("columns", columns), ("forest", RandomForestClassifier(random_state=7))])
    grid = {"forest__n_estimators": [10, 50], "forest__max_depth": [3, None]}

    search = MLflowEstimator(
        GridSearchCV(pipeline, grid, cv=3, n_jobs=2),
        {
            "experiment_name": "penguins",
            "register_model": True,
            "model_name": "penguins",
            "model_alias": "champion",
        },
    )
    search.fit(X_train, y_train)
    found = search.evaluate(X_test, y_test)
    print(f"run {search.run_id_}: {search.best_params_}, {found['test_accuracy_score']:.2f} on the test set")
    print(f"registered as version {search.model_version_}")  # waits until it is

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    champion = mlflow.pyfunc.load_model("models:/penguins@champion")
    print(f"models:/penguins@champion says: {', '.join(champion.predict(X_test[:3]))}")


if __name__ == "__main__":
    main()
