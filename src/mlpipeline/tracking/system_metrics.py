"""CPU, memory, disk, network and GPU use of the machine, as MLflow names them, while a run is open.

A daemon thread samples every `SAMPLE_EVERY_S` seconds and logs through the run like anybody else. It
needs ``psutil`` (``pip install "mlpipeline[system-metrics]"``), and ``pynvml`` for GPUs if it is there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import MissingExtraError

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run

SAMPLE_EVERY_S = 10.0
"""MLflow's own interval."""


class SystemMetrics:
    """Samples the machine into a run until `stop`.

    Args:
        run: The run to log to.

    Raises:
        MissingExtraError: psutil is not installed.
    """

    def __init__(self, run: Run) -> None:
        try:
            import psutil
        except ImportError as error:
            raise MissingExtraError("system-metrics", "psutil") from error
        self._psutil: Any = psutil
        self._run = run
        self._stop = threading.Event()
        self._start = self._counters()
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._thread = threading.Thread(target=self._sample, name="mlpipeline-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sampling."""
        self._stop.set()

    def _sample(self) -> None:
        step = 0
        while not self._stop.wait(SAMPLE_EVERY_S):
            metrics = {f"system/{name}": value for name, value in self.sample().items()}
            if self._run.is_ended:
                return
            self._run.log_metrics(metrics, step)
            step += 1

    def sample(self) -> dict[str, float]:
        """Return one sample: percentages, and megabytes (10^6 bytes) as MLflow counts them."""
        psutil = self._psutil
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        now = self._counters()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_usage_percentage": disk.percent,
            **{name: (now[name] - self._start[name]) / 1e6 for name in now},
            **_gpu_sample(),
        }

    def _counters(self) -> dict[str, float]:
        network = self._psutil.net_io_counters()
        return {
            "network_receive_megabytes": float(network.bytes_recv),
            "network_transmit_megabytes": float(network.bytes_sent),
        }


def _gpu_sample() -> dict[str, float]:
    try:
        import pynvml

        pynvml.nvmlInit()
        found: dict[str, float] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            found[f"gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(device).gpu
            found[f"gpu_{index}_memory_usage_megabytes"] = memory.used / 1e6
            found[f"gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
    except Exception:  # noqa: BLE001 - no package, no driver, no device: then there is nothing to say
        return {}
    return found
