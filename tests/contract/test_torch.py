"""The contract, for hand-written loops of torch."""

from __future__ import annotations

import contextlib

import torch

from mlpipeline.testing import IntegrationContract, Trained, watched
from mlpipeline.torch import MLflowLoop

ROWS = torch.linspace(-1, 1, 32).reshape(8, 4)


class TestTorch(IntegrationContract):
    """Batches are the steps; what the loop itself keeps is what it reports."""

    def callback(self, **options):
        return MLflowLoop(**options)

    def train(self, callback, *, steps, probe, continue_from=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        done = 0
        if continue_from is not None:
            done, weights, state = continue_from
            module.load_state_dict(weights)
            if callback is not None:
                callback.load_state_dict(state)
        losses = []
        with watched(module=module, rows=ROWS) as touched, callback or contextlib.nullcontext() as loop:
            if loop is not None:
                loop.watch(module, optimizer)
            for step in range(done, done + steps):
                with loop.batch() if loop is not None else contextlib.nullcontext():
                    loss = (module(ROWS) - ROWS.sum(1, keepdim=True)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(float(loss.detach()))
                    metrics = {"loss": loss, "probe": probe(step)}
                    if loop is not None:
                        loop.log(metrics)
        weights = {name: part.clone() for name, part in module.state_dict().items()}
        state = callback.state_dict() if callback is not None else None
        model = b"".join(part.numpy().tobytes() for part in weights.values())
        return Trained({"loss": losses}, model, touched, carry=(done + steps, weights, state))
