"""PPSD on vLLM's CUDA worker: a stage of a pipeline, and one device."""

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ppsd.runner.v1_pipeline import PPSDRunnerMixin
from vllm_ppsd.runner.v1_single import SingleRunnerMixin
from vllm_ppsd.single.worker import SingleWorkerMixin
from vllm_ppsd.worker.worker import PPSDWorkerMixin


class PPSDCUDAModelRunner(PPSDRunnerMixin, GPUModelRunner):
    """vLLM's CUDA model runner with a PPSD stage."""


class PPSDCUDAWorker(PPSDWorkerMixin, Worker):
    """vLLM's CUDA worker with a PPSD model runner."""

    def _make_model_runner(self) -> PPSDCUDAModelRunner:
        return PPSDCUDAModelRunner(self.vllm_config, self.device)


class SingleCUDAModelRunner(SingleRunnerMixin, GPUModelRunner):
    """vLLM's CUDA model runner with the early-exit proposer."""


class SingleCUDAWorker(SingleWorkerMixin, Worker):
    """vLLM's CUDA worker with that runner."""

    def _make_model_runner(self) -> SingleCUDAModelRunner:
        return SingleCUDAModelRunner(self.vllm_config, self.device)
