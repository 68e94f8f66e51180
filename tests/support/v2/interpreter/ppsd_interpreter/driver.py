"""The backend's driver: this machine's CPU."""

from typing import Any

import torch
from triton.backends import compiler, driver


class Driver(driver.DriverBase):
    def __init__(self) -> None:
        pass

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> Any:
        return compiler.GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError
