"""PPSD on one CUDA worker of vLLM."""

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ppsd.runner.v1_single import SingleRunnerMixin
from vllm_ppsd.single.worker import SingleWorkerMixin


class SingleCUDAModelRunner(SingleRunnerMixin, GPUModelRunner):
    """vLLM's CUDA model runner with the early-exit proposer."""


class SingleCUDAWorker(SingleWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    def _make_model_runner(self) -> SingleCUDAModelRunner:
        return SingleCUDAModelRunner(self.vllm_config, self.device)
