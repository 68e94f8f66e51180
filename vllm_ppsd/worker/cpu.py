"""PPSD on vLLM's CPU worker: a stage of a pipeline, and one device."""

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip  (vLLM: must be first)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_ppsd.runner.v1_pipeline import PPSDRunnerMixin
from vllm_ppsd.runner.v1_single import SingleRunnerMixin
from vllm_ppsd.single.worker import SingleWorkerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class PPSDCPUModelRunner(PPSDRunnerMixin, CPUModelRunner):
    """vLLM's CPU model runner with a PPSD stage."""


class PPSDCPUWorker(PPSDWorkerMixin, CPUWorker):
    """vLLM's CPU worker with a PPSD model runner."""

    model_runner_cls = PPSDCPUModelRunner
    has_cpu_tensors = True


class SingleCPUModelRunner(SingleRunnerMixin, CPUModelRunner):
    """vLLM's CPU model runner with the early-exit proposer."""


class SingleCPUWorker(SingleWorkerMixin, CPUWorker):
    """vLLM's CPU worker with that runner."""

    model_runner_cls = SingleCPUModelRunner
