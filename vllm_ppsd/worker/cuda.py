"""PPSD on vLLM's CUDA worker: a stage of a pipeline, and one device."""

from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ppsd.runner.v2.pipeline import V2RunnerMixin
from vllm_ppsd.runner.v2.single import V2SingleRunnerMixin
from vllm_ppsd.single.v2_worker import V2SingleWorkerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class V2CUDAModelRunner(V2RunnerMixin, GPUModelRunner):
    """vLLM's V2 model runner with a PPSD stage."""


class V2CUDAWorker(PPSDWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    is_v2 = True

    def _make_model_runner(self) -> V2CUDAModelRunner:
        return V2CUDAModelRunner(self.vllm_config, self.device)


class V2SingleCUDAModelRunner(V2SingleRunnerMixin, GPUModelRunner):
    """vLLM's V2 model runner with the early-exit proposer."""


class V2SingleCUDAWorker(V2SingleWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    def _make_model_runner(self) -> V2SingleCUDAModelRunner:
        return V2SingleCUDAModelRunner(self.vllm_config, self.device)
