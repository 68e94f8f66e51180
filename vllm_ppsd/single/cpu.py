"""PPSD on one CPU worker of vLLM."""

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip  (vLLM: must be first)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_ppsd.runner.v1_single import SingleRunnerMixin
from vllm_ppsd.single.worker import SingleWorkerMixin


class SingleCPUModelRunner(SingleRunnerMixin, CPUModelRunner):
    """vLLM's CPU model runner with the early-exit proposer."""


class SingleCPUWorker(SingleWorkerMixin, CPUWorker):
    """vLLM's CPU worker with that runner."""

    model_runner_cls = SingleCPUModelRunner
