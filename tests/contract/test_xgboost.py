"""The contract, for XGBoost."""

from __future__ import annotations

import numpy as np
import xgboost

from mlpipeline.testing import IntegrationContract, Trained, watched
from mlpipeline.xgboost import MLflowCallback

ROWS = np.random.default_rng(0).normal(size=(60, 4))


class TestXGBoost(IntegrationContract):
    """Rounds are the steps; a metric of the user's own is the probe."""

    probe = "train-probe"

    def callback(self, **options):
        return MLflowCallback(**options)

    def train(self, callback, *, steps, probe, continue_from=None):
        done = continue_from.num_boosted_rounds() if continue_from else 0
        rounds = iter(range(done, done + steps))

        def metric(predictions, data):
            return "probe", float(probe(next(rounds)))

        params = {"max_depth": 2, "subsample": 0.8, "nthread": 1}
        data = xgboost.DMatrix(ROWS, label=ROWS.sum(1))
        callbacks, found = [callback] if callback else [], {}
        with watched(callbacks=callbacks, params=params) as touched:
            booster = xgboost.train(
                params,
                data,
                steps,
                evals=[(data, "train")],
                custom_metric=metric,
                evals_result=found,
                callbacks=callbacks,
                verbose_eval=False,
                xgb_model=continue_from,
            )
        reported = {f"train-{name}": values for name, values in found["train"].items()}
        return Trained(reported, bytes(booster.save_raw()), touched, carry=booster)
