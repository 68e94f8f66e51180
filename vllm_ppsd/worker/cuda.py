"""PPSD on vLLM's CUDA worker: a stage of a pipeline, and one device."""

from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2GPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ppsd.runner.v1_single import SingleRunnerMixin
from vllm_ppsd.runner.v2.pipeline import V2RunnerMixin
from vllm_ppsd.single.worker import SingleWorkerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class V2CUDAModelRunner(V2RunnerMixin, V2GPUModelRunner):
    """vLLM's V2 model runner with a PPSD stage."""


class V2CUDAWorker(PPSDWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    def _make_model_runner(self) -> V2CUDAModelRunner:
        return V2CUDAModelRunner(self.vllm_config, self.device)


class SingleCUDAModelRunner(SingleRunnerMixin, GPUModelRunner):
    """vLLM's CUDA model runner with the early-exit proposer."""


class SingleCUDAWorker(SingleWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    def _make_model_runner(self) -> SingleCUDAModelRunner:
        return SingleCUDAModelRunner(self.vllm_config, self.device)
