"""PPSD on vLLM's CUDA worker."""

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ppsd.runner.v1_pipeline import PPSDRunnerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class PPSDCUDAModelRunner(PPSDRunnerMixin, GPUModelRunner):
    """vLLM's CUDA model runner with a PPSD stage."""


class PPSDCUDAWorker(PPSDWorkerMixin, Worker):
    """vLLM's CUDA worker with a PPSD model runner."""

    def _make_model_runner(self) -> PPSDCUDAModelRunner:
        return PPSDCUDAModelRunner(self.vllm_config, self.device)
