"""PPSD on vLLM's CPU worker with its V2 model runner: a stage of a pipeline, and one device."""

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip  (vLLM: must be first)
from vllm.v1.worker.cpu.model_runner import CPUModelRunner

from vllm_ppsd.runner.v2.pipeline import V2RunnerMixin
from vllm_ppsd.runner.v2.single import V2SingleRunnerMixin
from vllm_ppsd.single.v2_worker import V2SingleWorkerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class V2CPUModelRunner(V2RunnerMixin, CPUModelRunner):
    """vLLM's V2 model runner on a CPU with a PPSD stage."""


class V2CPUWorker(PPSDWorkerMixin, CPUWorker):
    """vLLM's CPU worker with that runner."""

    model_runner_cls = V2CPUModelRunner
    has_cpu_tensors = True
    is_v2 = True


class V2SingleCPUModelRunner(V2SingleRunnerMixin, CPUModelRunner):
    """vLLM's V2 model runner on a CPU with the early-exit proposer."""


class V2SingleCPUWorker(V2SingleWorkerMixin, CPUWorker):
    """vLLM's CPU worker with that runner."""

    model_runner_cls = V2SingleCPUModelRunner
